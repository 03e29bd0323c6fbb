"""Carries out what autoscale and residency decide: asks routers for their load, lets pods in, scales, says why.

All that it remembers it would find out again: a leader that has just begun scales nothing down until it has seen as
much as it needs to.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

from multimodel_api import names
from multimodel_api.manifest import Model, MultiModel, MultiModelSpec
from multimodel_api.names import FieldManager
from multimodel_operator import autoscale, events, objects, residency, tenancy
from multimodel_operator.autoscale import Load
from multimodel_operator.cache import Cache
from multimodel_operator.cluster import Cluster
from multimodel_operator.errors import RefusedError
from multimodel_operator.load_samples import Sample, asking
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key, Object, Observed
from multimodel_operator.residency import Patience, Tenant, Unload, Yield
from multimodel_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

WORKERS = 16
MADE_ROOM = "MadeRoom"
"""The reason of an eviction's Event."""


@dataclass(frozen=True)
class Timing:
    """Seconds between two questions to the routers of a MultiModel, of one where a model waits for room, and more."""

    calm: float = 5.0
    urgent: float = 1.0
    down: float = autoscale.DOWN_SECONDS
    patience: Patience = field(default_factory=Patience)


@dataclass
class _Memory:
    """What is known of one MultiModel from earlier looks."""

    revision: tuple[str, int]
    spec: MultiModelSpec
    asked_at: float = 0.0
    silent: tuple[str, ...] = ()
    loads: dict[str, list[Load]] = field(default_factory=dict)


class Scaler:
    """Scales the models of all MultiModels by what is asked of them."""

    def __init__(
        self,
        cache: Cache,
        cluster: Cluster,
        metrics: Metrics,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._cluster = cluster
        self._timing = timing
        self._clock = clock
        self.queue = WorkQueue(self._look, WORKERS, metrics, "scale")
        self._memories: dict[Key, _Memory] = {}

    async def run(self) -> None:
        """Scale until cancelled."""
        self._memories.clear()  # another may have led since
        async with asking() as self._routers:
            with self._cache.following(self.queue.add):
                await self.queue.run()

    async def _look(self, key: Key) -> None:
        """Let in who may come in; ask the routers when it is time to, and do what follows."""
        observed, memory = self._recall(key)
        if observed is None or memory is None:
            return
        found = tenancy.tenants(observed, self._clock())
        most = memory.spec.residency.max_loaded
        await self._let_in(key, residency.admissions(found, most))
        waiting = residency.blocked(found, most)
        if not (waiting or residency.overfull(found, most) or any(map(_follows_load, memory.spec.models))):
            await self._scale_by_load(key, observed, memory, found)
            return
        interval = self._timing.urgent if waiting else self._timing.calm
        if self._clock() >= memory.asked_at + interval:
            await self._ask(key, observed, memory)
        self.queue.add(key, max(0.0, memory.asked_at + interval - self._clock()))

    async def _ask(self, key: Key, observed: Observed, memory: _Memory) -> None:
        memory.asked_at = now = self._clock()
        sample = await self._routers.sample(tenancy.router_pods(observed, memory.spec, now), now)
        self._tell_silence(key, memory, sample)
        latest, memory_now = self._recall(key)  # what happened while the routers were asked counts
        if latest is None or memory_now is not memory:
            return
        _remember(memory, sample, now - self._timing.down)
        found = tenancy.with_loads(tenancy.tenants(latest, now), sample)
        evicted = await self._make_room(key, latest, memory.spec, found) if sample.complete else set()
        await self._scale_by_load(key, latest, memory, [tenant for tenant in found if tenant.name not in evicted])

    async def _let_in(self, key: Key, admissions: Iterable[residency.Admit]) -> None:
        for admission in admissions:
            for pod in admission.pods:
                logger.info("%s: model %s: pod %s may run", key, admission.model, pod)
                await self._attempt(key, self._cluster.admit(Key(key.namespace, pod)))

    async def _make_room(self, key: Key, observed: Observed, spec: MultiModelSpec, found: list[Tenant]) -> set[str]:
        """Unload who has to make room, and return those models."""
        most, patience = spec.residency.max_loaded, self._timing.patience
        evictions = residency.evictions(found, most, self._clock(), patience)
        tenants = {tenant.name: tenant for tenant in found}
        for eviction in evictions:
            match eviction:
                case Unload(model, note):
                    await self._scale(key, observed, tenants[model], 0, (MADE_ROOM, note))
                case Yield(model, pods, note):
                    for pod in pods:
                        await self._attempt(key, self._cluster.end_pod(Key(key.namespace, pod)))
                    await self._say(key, observed, MADE_ROOM, f"model {model}: {note}")
        return {eviction.model for eviction in evictions}

    async def _scale_by_load(self, key: Key, observed: Observed, memory: _Memory, found: Iterable[Tenant]) -> None:
        scalings = {model.name: model.scaling for model in memory.spec.models}
        for tenant in (tenant for tenant in found if tenant.name in scalings):
            loads, idle_since = memory.loads.get(tenant.name, []), tenancy.idle_since(tenant)
            scaling, down = scalings[tenant.name], self._timing.down
            change = autoscale.decide(loads, tenant.replicas, scaling, idle_since, self._clock(), down_seconds=down)
            if change:
                await self._scale(key, observed, tenant, change.replicas, (change.reason, change.note))

    async def _scale(self, key: Key, observed: Observed, tenant: Tenant, replicas: int, why: tuple[str, str]) -> None:
        """Scale a model, unless somebody else did since it was looked at, and say why."""
        deployment = self._cache.child(
            objects.DEPLOYMENT, Key(key.namespace, names.model_object_name(key.name, tenant.name))
        )
        if deployment is None or deployment["spec"].get("replicas", 1) != tenant.replicas:
            return
        scaled = self._cluster.scale(key, tenant.name, replicas, FieldManager.AUTOSCALER)
        if not await self._attempt(key, scaled):
            return
        reason, note = why
        note = f"model {tenant.name}: {tenant.replicas} → {replicas} replicas: {note}"
        await self._say(key, observed, reason, note)

    async def _say(self, key: Key, observed: Observed, reason: str, note: str) -> None:
        said = events.Notice("Normal", reason, note)
        logger.info("%s: %s: %s", key, reason, note)
        now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        await self._attempt(key, self._cluster.post_event(events.event(said, observed.multimodel, now)))

    async def _attempt(self, key: Key, write: Awaitable[None]) -> bool:
        """Write; what is refused is decided afresh at the next look."""
        try:
            await write
        except RefusedError as refused:
            logger.info("%s: %s", key, refused)
            return False
        return True

    def _recall(self, key: Key) -> tuple[Observed | None, _Memory | None]:
        """Return a MultiModel as it is, and what is known of it; None where there is nothing to scale."""
        observed = self._cache.observe(key)
        if observed is None or "deletionTimestamp" in observed.multimodel["metadata"]:
            self._memories.pop(key, None)
            return None, None
        metadata = observed.multimodel["metadata"]
        revision = metadata["uid"], metadata["generation"]
        known = self._memories.get(key)
        if known is not None and known.revision == revision:
            return observed, known
        spec = _spec(observed.multimodel)
        if spec is None:
            return observed, known  # a spec that is not understood changes nothing
        self._memories[key] = _Memory(revision, spec, loads=known.loads if known else {})
        return observed, self._memories[key]

    def _tell_silence(self, key: Key, memory: _Memory, sample: Sample) -> None:
        if sample.silent and not memory.silent:
            logger.warning("%s: nothing is scaled down, as routers do not answer: %s", key, ", ".join(sample.silent))
        memory.silent = sample.silent


def _follows_load(model: Model) -> bool:
    return (model.scaling.max_replicas, model.scaling.idle_seconds) != (None, None)


def _remember(memory: _Memory, sample: Sample, since: float) -> None:
    """Add what was counted of each model, and forget what no decision needs any more."""
    listed = [model.name for model in memory.spec.models]
    memory.loads = {
        name: autoscale.keeps(
            [*memory.loads.get(name, []), Load(sample.at, sample.of(name).in_flight, sample.complete)], since
        )
        for name in listed
    }


def _spec(multimodel: Object) -> MultiModelSpec | None:
    try:
        return MultiModel.model_validate(multimodel).spec
    except ValidationError:
        return None
