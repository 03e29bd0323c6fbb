"""Autoscale and residency on a simulated cluster: whatever happens to it, and against first come, first served."""

import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from multimodel_api import names
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.state import ModelState
from multimodel_api.status import MultiModelStatus
from multimodel_operator import autoscale, residency, serving, status, tenancy
from multimodel_operator.autoscale import Load
from multimodel_operator.load_samples import Counted, RouterPod, joined
from multimodel_operator.objects import Observed
from multimodel_operator.residency import Patience, Tenant, Yield
from multimodel_operator.status import Findings

START = 1_700_000_000
PATIENCE = Patience(quiet=2, turn=10)
DOWN_SECONDS = 8
LOAD_SECONDS = 4
LONGEST_WORK = 12
MODELS = ("a", "b", "c", "d")


@dataclass(eq=False)
class Request:
    model: str
    arrived: int
    work: int
    pod: "Pod | None" = None
    ended: int | None = None


@dataclass(eq=False)
class Pod:
    model: str
    name: str
    created: int
    gated: bool
    placed: bool = False
    loaded_at: int | None = None
    ready_since: int | None = None
    ending: bool = False
    work: list[Request] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        conditions = [{"type": "PodScheduled", "status": "True" if self.placed else "False"}]
        if self.ready_since is not None:
            conditions.append({"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(self.ready_since)})
        metadata = {"name": self.name, "creationTimestamp": rfc3339(self.created)}
        metadata |= {"labels": {names.LABEL_MODEL: self.model}, "namespace": "n"}
        metadata |= {"deletionTimestamp": rfc3339(2 * START)} if self.ending else {}
        spec: dict[str, Any] = {"nodeName": "node"} if self.placed else {}
        spec |= {"schedulingGates": [{"name": names.RESIDENCY_GATE}]} if self.gated else {}
        return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"conditions": conditions}}


def rfc3339(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat().replace("+00:00", "Z")


@cache
def parsed(spec: str) -> MultiModelSpec:
    return MultiModelSpec.model_validate_json(spec)


class World:
    """A cluster with one MultiModel; a step takes a second."""

    def __init__(
        self, max_loaded: int | None, models: Sequence[str] = MODELS, load_seconds: int = LOAD_SECONDS
    ) -> None:
        self.now = START
        self.load_seconds = load_seconds
        self.max_loaded = max_loaded
        self.scaling: dict[str, dict[str, int]] = {model: {"minReplicas": 0} for model in models}
        self.replicas = dict.fromkeys(models, 0)
        self.pods: list[Pod] = []
        self.requests: list[Request] = []
        self.last_request: dict[str, int] = {}
        self.loads = 0
        self._numbers = count()

    @property
    def spec(self) -> MultiModelSpec:
        models = [
            {"name": name, "plain": {"modelId": f"org/{name}"}, "scaling": scaling}
            for name, scaling in self.scaling.items()
        ]
        limit = {} if self.max_loaded is None else {"maxLoaded": self.max_loaded}
        return parsed(json.dumps({"models": models, "residency": limit}))

    def holders(self) -> set[str]:
        return {pod.model for pod in self.pods if not pod.gated}

    def ready(self, model: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.model == model and pod.ready_since is not None and not pod.ending]

    def in_flight(self, model: str) -> int:
        return sum(request.model == model for request in self.open_requests())

    def open_requests(self) -> list[Request]:
        return [request for request in self.requests if request.ended is None]

    def ask(self, model: str, work: int) -> None:
        self.requests.append(Request(model, self.now, work))
        self.last_request[model] = self.now

    def kill(self, pod: Pod) -> None:
        """End a pod at once; routers send its requests to another."""
        for request in pod.work:
            request.pod = None
        self.pods.remove(pod)

    def remove(self, model: str) -> None:
        del self.scaling[model], self.replicas[model]
        for request in self.open_requests():
            if request.model == model and request.pod is None:
                request.ended = self.now  # with a 404
        for pod in self._living(model):
            self._end(pod)

    def end(self, pods: Sequence[str]) -> None:
        """End pods as a deletion does: they finish what they have begun."""
        for pod in list(self.pods):
            if pod.name in pods:
                self._end(pod)

    def observed(self) -> Observed:
        deployments = tuple(
            {
                "kind": "Deployment",
                "metadata": {
                    "name": names.model_object_name("mm", model),
                    "namespace": "n",
                    "labels": {names.LABEL_MODEL: model},
                },
                "spec": {"replicas": replicas},
                "status": {"readyReplicas": len(self.ready(model))},
            }
            for model, replicas in self.replicas.items()
        )
        metadata = {"name": "mm", "namespace": "n", "generation": 1, "uid": "u"}
        pods = tuple(pod.document() for pod in self.pods)
        return Observed({"kind": "MultiModel", "metadata": metadata}, deployments, pods)

    def page(self) -> dict[str, Counted]:
        known = {request.model for request in self.open_requests()} | set(self.last_request)
        return {model: Counted(self.in_flight(model), self.last_request.get(model, 0)) for model in known}

    def step(self) -> None:
        self.now += 1
        self._routers()
        self._deployments()
        self._kubelet()

    def _routers(self) -> None:
        for request in self.open_requests():
            if request.pod is None and request.model not in self.replicas:
                request.ended = self.now
            elif request.pod is None and self.replicas[request.model] == 0:
                self.replicas[request.model] = max(1, self.scaling[request.model]["minReplicas"])
            elif request.pod is None and (ready := self.ready(request.model)):
                request.pod = min(ready, key=lambda pod: len(pod.work))
                request.pod.work.append(request)

    def _deployments(self) -> None:
        for model, replicas in self.replicas.items():
            living = sorted(self._living(model), key=lambda pod: (pod.ready_since is not None, pod.placed))
            for pod in living[: max(0, len(living) - replicas)]:
                self._end(pod)
            for _ in range(replicas - len(living)):
                name = f"{model}-{next(self._numbers)}"
                self.pods.append(Pod(model, name, self.now, gated=self.max_loaded is not None))

    def _kubelet(self) -> None:
        for pod in list(self.pods):
            if pod.gated:
                continue
            if not pod.placed:
                pod.placed, pod.loaded_at = True, self.now + self.load_seconds
                self.loads += 1
            elif pod.ready_since is None and pod.loaded_at == self.now:
                pod.ready_since = self.now
            self._work(pod)
            if pod.ending and not pod.work:
                self.pods.remove(pod)

    def _work(self, pod: Pod) -> None:
        for request in list(pod.work):
            request.work -= 1
            if request.work <= 0:
                request.ended = self.now
                self.last_request[request.model] = self.now
                pod.work.remove(request)

    def _living(self, model: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.model == model and not pod.ending]

    def _end(self, pod: Pod) -> None:
        pod.ending = True
        if not pod.placed:
            self.pods.remove(pod)


class Leader:
    """The operator's decisions, carried out at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loads: dict[str, list[Load]] = {}
        self.began = world.now

    def act(self, *, heard: bool = True) -> None:
        world = self.world
        for admission in residency.admissions(self._tenants(heard), world.max_loaded):
            for pod in world.pods:
                if pod.name in admission.pods:
                    pod.gated = False
        tenants = self._tenants(heard)
        evicted = residency.evictions(tenants, world.max_loaded, world.now, PATIENCE) if heard else []
        for eviction in evicted:
            if isinstance(eviction, Yield):
                world.end(eviction.pods)
            else:
                assert not world.in_flight(eviction.model)
                world.replicas[eviction.model] = 0
        self._scale([tenant for tenant in tenants if tenant.name not in {e.model for e in evicted}], heard)

    def _tenants(self, heard: bool) -> list[Tenant]:
        router = RouterPod("router", "", START, must_answer=True)
        self._sample = joined(self.world.now, [router], [self.world.page() if heard else None])
        observed = self.world.observed()
        return tenancy.with_loads(tenancy.tenants(observed, self.world.now), self._sample)

    def _scale(self, tenants: Sequence[Tenant], heard: bool) -> None:
        world, now = self.world, self.world.now
        scalings = {model.name: model.scaling for model in world.spec.models}
        for tenant in (tenant for tenant in tenants if tenant.name in scalings):
            seen = [*self.loads.get(tenant.name, []), Load(now, tenant.in_flight, heard)]
            self.loads[tenant.name] = loads = autoscale.keeps(seen, now - DOWN_SECONDS)
            scaling, idle_since = scalings[tenant.name], tenancy.idle_since(tenant)
            change = autoscale.decide(loads, tenant.replicas, scaling, idle_since, now, down_seconds=DOWN_SECONDS)
            if change:
                assert change.replicas or not world.in_flight(tenant.name)
                world.replicas[tenant.name] = change.replicas


class Anything(RuleBasedStateMachine):
    """Applies, edits, unloads, reloads, requests, kills, restarts and silences, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(max_loaded=2)
        self.leader = Leader(self.world)
        self.unloaded: set[str] = set()

    models = st.sampled_from(MODELS)
    limits = st.sampled_from([1, 2, 3, None])

    @rule(models=st.sets(models, min_size=1), work=st.integers(1, LONGEST_WORK), seconds=st.integers(0, 8))
    def request(self, models: set[str], work: int, seconds: int) -> None:
        """Ask several models at once, and see how far they come."""
        for model in sorted(models & set(self.world.replicas)):
            self.unloaded.discard(model)
            self.world.ask(model, work)
        self.advance(seconds)

    @rule(model=models)
    def unload(self, model: str) -> None:
        if model in self.world.replicas:
            self.world.replicas[model] = 0
            if not any(request.pod is None and request.model == model for request in self.world.open_requests()):
                self.unloaded.add(model)

    @rule(model=models)
    def reload(self, model: str) -> None:
        if self.world.replicas.get(model) == 0:
            self.unloaded.discard(model)
            self.world.replicas[model] = 1

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        pod = data.draw(st.sampled_from(self.world.pods))
        for request in pod.work:
            self.unloaded.discard(request.model)
        self.world.kill(pod)

    @rule(most=limits)
    def edit_residency(self, most: int | None) -> None:
        self.world.max_loaded = most

    @rule(model=models, fewest=st.integers(0, 2), more=st.integers(0, 2), idle=st.sampled_from([None, None, 3, 15]))
    def edit_scaling(self, model: str, fewest: int, more: int, idle: int | None) -> None:
        if model in self.world.scaling:
            most = max(1, fewest) + more
            scaling = {"minReplicas": fewest, "maxReplicas": most, "targetRequests": 2}
            self.world.scaling[model] = scaling | ({} if idle is None else {"idleSeconds": idle})

    @precondition(lambda self: len(self.world.scaling) > 1)
    @rule(model=models)
    def remove(self, model: str) -> None:
        if model in self.world.scaling:
            self.world.remove(model)

    @rule(model=models)
    def add(self, model: str) -> None:
        if model not in self.world.scaling:
            self.world.scaling[model] = {"minReplicas": 0}
            self.world.replicas[model] = 0

    @rule()
    def restart_the_operator(self) -> None:
        self.leader = Leader(self.world)

    @rule(seconds=st.integers(1, 8))
    def silence_a_router(self, seconds: int) -> None:
        self.advance(seconds, heard=False)

    @rule(seconds=st.integers(1, 12))
    def let_pass(self, seconds: int) -> None:
        self.advance(seconds)

    def advance(self, seconds: int, *, heard: bool = True) -> None:
        for _ in range(seconds):
            before = self.world.holders()
            self.leader.act(heard=heard)
            self.world.step()
            self.never_more_than_there_are_places(before)

    def never_more_than_there_are_places(self, before: set[str]) -> None:
        most, holders = self.world.max_loaded, self.world.holders()
        assert most is None or len(holders) <= max(most, len(before)), holders

    @invariant()
    def nobody_undoes_an_unload(self) -> None:
        assert all(self.world.replicas.get(model, 0) == 0 for model in self.unloaded)

    def teardown(self) -> None:
        """Leave it alone: every request ends, and what is told is what is."""
        self.advance(len(MODELS) * (PATIENCE_SECONDS + LOAD_SECONDS + LONGEST_WORK))
        assert not self.world.open_requests()
        self.advance(len(MODELS) * (PATIENCE_SECONDS + LOAD_SECONDS) + DOWN_SECONDS + 20)
        self.told_is_what_is()
        for model, scaling in self.world.scaling.items():
            if "idleSeconds" in scaling:
                assert self.world.replicas[model] == 0
        settled = {model for model in self.world.replicas if self.world.ready(model)}
        assert self.world.max_loaded is None or len(settled) <= self.world.max_loaded

    def told_is_what_is(self) -> None:
        world = self.world
        findings = Findings(serving.decide(world.spec, MultiModelStatus(), world.observed()))
        told = status.current_status(world.observed(), world.spec, findings, MultiModelStatus(), rfc3339(world.now))
        for model in told.models:
            ready = len(world.ready(model.name))
            assert model.state is (ModelState.LOADED if ready else ModelState.UNLOADED)
            assert (model.replicas, model.ready_replicas) == (ready, ready)


PATIENCE_SECONDS = int(PATIENCE.quiet + PATIENCE.turn) + 2

TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_fewer_places_take_effect_without_anybody_asking() -> None:
    story = Anything()
    story.request({"a", "b"}, work=3, seconds=20)
    assert story.world.holders() == {"a", "b"}
    story.edit_residency(1)
    story.teardown()


def test_a_model_that_finishes_its_work_after_an_unload_holds_its_place() -> None:
    story = Anything()
    story.edit_residency(1)
    story.request({"a"}, work=15, seconds=8)
    story.unload("a")
    story.request({"b"}, work=1, seconds=5)
    assert story.world.holders() == {"a"}
    story.teardown()


@dataclass(frozen=True)
class Outcome:
    loads: int
    longest_wait: int
    took: int


def ours(arrivals: Sequence[str], load_seconds: int, work: int, most: int) -> Outcome:
    """Serve a request a second, by turns."""
    world = World(most, sorted(set(arrivals)), load_seconds)
    leader = Leader(world)
    coming = deque(arrivals)
    while coming or world.open_requests():
        if coming:
            world.ask(coming.popleft(), work)
        leader.act()
        world.step()
        assert world.now < START + 100_000
    waits = [request.ended - request.arrived - work for request in world.requests if request.ended]
    return Outcome(world.loads, max(waits), world.now - START)


def first_come(arrivals: Sequence[str], load_seconds: int, work: int, most: int) -> Outcome:
    """Serve a request a second, each as soon as all before it have begun; the least recently used idle one goes."""
    used: dict[str, int] = {}
    """Until when each loaded model is busy, in the order of use."""
    now = loads = longest = 0
    for arrived, model in enumerate(arrivals):
        now = max(now, arrived)
        if model not in used:
            if len(used) == most:
                now = max(now, used.pop(next(iter(used))))
            loads += 1
            now += load_seconds
        used.pop(model, None)
        used[model] = now + work
        longest = max(longest, now - arrived)
    return Outcome(loads, longest, now + work)


MIXES = {
    "alternating": (["a", "b"] * 100, 1),
    "three in a row": (["a", "b", "c"] * 60, 1),
    "any order": (random.Random(1).choices("abc", k=180), 1),
    "two places": (["a", "b", "c"] * 60, 2),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("load_seconds", [2, 10])
def test_turns_cost_at_most_half_the_swaps_of_first_come_and_nobody_starves(mix: str, load_seconds: int) -> None:
    arrivals, most = MIXES[mix]
    by_turns, in_order = (serve(arrivals, load_seconds, 2, most) for serve in (ours, first_come))
    assert by_turns.loads <= in_order.loads / 2, (by_turns, in_order)
    assert by_turns.took <= in_order.took
    others = len(set(arrivals)) - 1
    assert by_turns.longest_wait <= (others + 1) * (PATIENCE.turn + load_seconds + 2 + 5), by_turns
