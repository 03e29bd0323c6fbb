"""Two routers, one cluster, and everything that can race: all requests end, and what the routers see becomes true.

Waiting rooms, lifecycles and the vetting of endpoints are the real ones; cluster, servers and time are simulated.
"""

import asyncio
import dataclasses
import random
import selectors
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from multimodel_api.errors import ApiError
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.lifecycle import LifecycleRequest
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.readiness import Readiness
from multimodel_api.status import LastCommand
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Changes, Endpoint, FleetUnavailableError, ModelView
from multimodel_router.fleet.vetted import VettedFleet
from multimodel_router.lifecycle import Lifecycle
from multimodel_router.loads import LoadHistory
from multimodel_router.metrics import Metrics
from multimodel_router.settings import AbandonedLoads, WaitingSettings
from multimodel_router.waiting import Step, WaitingRoom, next_step

SPEC = MultiModelSpec.model_validate({"models": [{"name": "m", "plain": {"modelId": "m"}}]})
MODEL = SPEC.models[0]
FAILURE = LoadFailure(reason=FailureReason.OOM_KILLED, message="too big")
QUIET_SECONDS = 1000.0
ENDLESS_SECONDS = 100_000.0


class _Clock(selectors.DefaultSelector):
    """Lets the time that nobody does anything pass at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing will ever happen: a request hangs"
        assert self.now < ENDLESS_SECONDS, "it goes on and on: a request hangs"
        self.now += timeout
        return super().select(0)


class Simulation(asyncio.SelectorEventLoop):
    """An event loop whose time is simulated."""

    def __init__(self) -> None:
        self.clock = _Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


@dataclass
class Server:
    """A model server; `ready` and not `draining` it takes requests, and what it has taken it finishes."""

    endpoint: Endpoint
    ready: bool = False
    draining: bool = False


@dataclass
class Cluster:
    """The truth: the wanted replicas, and the servers."""

    chance: random.Random
    faulty: bool
    desired: int = 0
    version: int = 0
    failure: LoadFailure | None = None
    servers: list[Server] = field(default_factory=list)
    watchers: list["StaleFleet"] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    started: int = 0

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def scale(self, replicas: int) -> None:
        if replicas == self.desired:
            return
        self.desired, self.failure = replicas, None
        for server in self.servers:
            server.draining = True
        self.servers = []
        for _ in range(replicas):
            self.started += 1
            server = Server(Endpoint("192.0.2.1", self.started))
            self.servers.append(server)
            self.do(self._load(server))
        self.changed()

    def changed(self) -> None:
        self.version += 1
        for watcher in self.watchers:
            watcher.tell(self.version, self.view())

    def view(self) -> ModelView:
        ready = tuple(server.endpoint for server in self.servers if server.ready)
        return ModelView(desired=self.desired, ready=ready, failure=None if ready else self.failure)

    async def _load(self, server: Server) -> None:
        await asyncio.sleep(self.chance.choice((0.0, 0.1, 1.0, 10.0)))
        if server.draining:
            return
        if self.faulty and self.chance.random() < 0.3:
            self.failure = FAILURE
        else:
            server.ready = True
        self.changed()


class StaleFleet:
    """What one router sees of the cluster: its own writes at once, everything else late but in order."""

    catalog = Catalog(SPEC)
    synced = True

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._wanted = (0, 0)
        self._seen = (0, ModelView(desired=0))
        self._changes = Changes()
        self._last_news = 0.0
        cluster.watchers.append(self)

    def tell(self, version: int, view: ModelView) -> None:
        loop = asyncio.get_running_loop()
        delay = self._cluster.chance.choice((0.0, 0.01, 0.5, 5.0))
        self._last_news = max(self._last_news, loop.time() + delay)
        loop.call_at(self._last_news, self._take, version, view)

    def _take(self, version: int, view: ModelView) -> None:
        self._wanted = max(self._wanted, (version, view.desired))
        self._seen = max(self._seen, (version, view), key=lambda seen: seen[0])
        self._changes.notify()

    def view(self, _model: str) -> ModelView:
        return dataclasses.replace(self._seen[1], desired=self._wanted[1])

    async def scale(self, _model: str, replicas: int) -> None:
        chance = self._cluster.chance
        await asyncio.sleep(chance.choice((0.0, 0.01, 2.0)))
        if self._cluster.faulty and chance.random() < 0.2:
            raise FleetUnavailableError("the API server does not answer")
        self._cluster.scale(replicas)
        version = self._cluster.version
        await asyncio.sleep(chance.choice((0.0, 0.01, 2.0)))
        self._wanted = max(self._wanted, (version, replicas))
        self._changes.notify()

    async def record(self, _model: str, _said: LastCommand) -> None:
        await asyncio.sleep(self._cluster.chance.choice((0.0, 2.0)))

    async def changed(self) -> None:
        await self._changes.wait()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Asking:
    """Asks the simulated servers whether they are ready."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def readiness(self, endpoint: Endpoint) -> Readiness | None:
        await asyncio.sleep(0.001)
        ready = any(server.endpoint == endpoint and server.ready for server in self._cluster.servers)
        return Readiness(model="m", canonical_id="m", boot="b") if ready else None


class Router:
    """A router without its HTTP."""

    def __init__(self, cluster: Cluster, abandoned: AbandonedLoads) -> None:
        self._cluster = cluster
        loads, metrics = LoadHistory(), Metrics()
        self.fleet = VettedFleet(StaleFleet(cluster), Asking(cluster), loads, metrics)
        self.waiting = WaitingRoom(self.fleet, metrics, loads, WaitingSettings(abandoned_loads=abandoned))
        self.lifecycle = Lifecycle(self.fleet, self.waiting)

    async def request(self) -> str:
        """Be answered, as an exchange does it; returns what the client gets."""
        tried = 0
        while True:
            view = self.fleet.view("m")
            try:
                ready = view.ready if next_step(view) is Step.SERVE else await self._wait(again=tried > 0)
            except ApiError as refused:
                return str(refused.detail.code)
            if await self._serve(ready[0]):
                return "answered"
            tried += 1
            self.fleet.eject("m", ready[0], "unavailable")

    async def _wait(self, *, again: bool) -> tuple[Endpoint, ...]:
        with self.waiting.place(MODEL, 1, again=again):
            return await self.waiting.until_ready(MODEL, "anonymous")

    async def _serve(self, endpoint: Endpoint) -> bool:
        await asyncio.sleep(0.001)
        taken = [server for server in self._cluster.servers if server.endpoint == endpoint and server.ready]
        if taken:
            await asyncio.sleep(self._cluster.chance.choice((0.0, 0.1, 3.0)))  # a server finishes what it has begun
        return bool(taken)

    async def unload(self) -> None:
        await self.lifecycle.unload(LifecycleRequest(model_id="m"), "anonymous")


@dataclass(frozen=True)
class Move:
    """Something that somebody does at one of the two routers."""

    after: float
    router: int
    what: str
    patience: float | None
    """After how many seconds the client leaves, None if it waits for as long as it takes."""


moves = st.builds(
    Move,
    after=st.sampled_from([0.0, 0.0, 0.01, 0.5, 2.0, 20.0]),
    router=st.integers(0, 1),
    what=st.sampled_from(["request", "request", "request", "unload"]),
    patience=st.sampled_from([0.0, 0.05, 1.0, 15.0, None, None, None]),
)


async def play(schedule: list[Move], seed: int, faulty: bool, abandoned: AbandonedLoads) -> None:
    cluster = Cluster(random.Random(seed), faulty)
    routers = [Router(cluster, abandoned) for _ in range(2)]
    for router in routers:
        await router.fleet.start()
    requests, unloads = [], []
    for move in schedule:
        await asyncio.sleep(move.after)
        router = routers[move.router]
        if move.what == "unload":
            unloads.append(asyncio.ensure_future(router.unload()))
        else:
            requests.append(asyncio.ensure_future(asyncio.wait_for(router.request(), move.patience)))
    await asyncio.gather(*unloads)
    ends = Counter(map(_end, await asyncio.gather(*requests, return_exceptions=True)))
    allowed = {"answered", "client left"} | ({"fleet_unavailable", "OOMKilled"} if faulty else set())
    assert set(ends) <= allowed, "an unload never sends anybody away"
    cluster.faulty = False
    await asyncio.sleep(QUIET_SECONDS)
    for router in routers:
        assert router.waiting.waiting("m") == 0
        assert router.fleet.view("m") == cluster.view()
        assert not router.waiting._beside
        assert not router.fleet._vetting
        await router.fleet.stop()


def _end(outcome: str | BaseException) -> str:
    if isinstance(outcome, TimeoutError):
        return "client left"
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@settings(max_examples=60, deadline=None)
@given(
    st.lists(moves, min_size=1, max_size=25),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from(AbandonedLoads),
)
def test_all_requests_end_and_all_routers_agree(
    schedule: list[Move], seed: int, faulty: bool, abandoned: AbandonedLoads
) -> None:
    with asyncio.Runner(loop_factory=Simulation) as runner:
        runner.run(play(schedule, seed, faulty, abandoned))
