"""What a request does about a model that is not ready."""

import asyncio

import pytest

from multimodel_api.errors import ApiError
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_api.status import CommandAction, LastCommand
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Changes, Endpoint, FleetUnavailableError, ModelView
from multimodel_router.loads import LoadHistory
from multimodel_router.metrics import Metrics
from multimodel_router.settings import AbandonedLoads, Bounds, WaitingSettings
from multimodel_router.waiting import Step, WaitingRoom, command, next_step, untried

READY = (Endpoint("192.0.2.1", 8000),)
OTHER = Endpoint("192.0.2.2", 8000)
FAILURE = LoadFailure(reason=FailureReason.OOM_KILLED, message="too big")
NO_ROOM = LoadFailure(reason=FailureReason.UNSCHEDULABLE, message="no node fits")
SPEC = MultiModelSpec.model_validate(
    {"models": [{"name": "m", "plain": {"modelId": "m"}, "scaling": {"minReplicas": 3}}]}
)
MODEL: Model = SPEC.models[0]


@pytest.mark.parametrize(
    ("view", "step"),
    [
        (ModelView(desired=1, ready=READY), Step.SERVE),
        (ModelView(desired=2, ready=READY, failure=FAILURE), Step.SERVE),
        (ModelView(desired=0), Step.WAKE),
        (ModelView(desired=0, ready=READY), Step.WAKE),
        (ModelView(desired=0, failure=FAILURE), Step.WAKE),
        (ModelView(desired=1), Step.WAIT),
        (ModelView(desired=None), Step.WAIT),
        (ModelView(desired=1, failure=FAILURE), FAILURE),
        (ModelView(desired=None, failure=FAILURE), FAILURE),
        (ModelView(desired=1, failure=NO_ROOM), Step.WAIT),
    ],
    ids=str,
)
def test_next_step(view: ModelView, step: Step | LoadFailure) -> None:
    assert next_step(view) == step


def test_the_server_that_failed_last_is_left_out_unless_there_is_no_other() -> None:
    assert untried((*READY, OTHER), READY[0]) == [OTHER]
    assert untried(READY, READY[0]) == [*READY]
    assert untried((*READY, OTHER), None) == [*READY, OTHER]


@pytest.mark.parametrize(
    ("counts", "too_much"),
    [
        ((3, 30, 2, 20), None),
        ((4, 30, 2, 20), "3 requests wait for a model already"),
        ((3, 31, 2, 20), "30 bytes of requests wait for a model already"),
        ((3, 30, 3, 20), "2 requests wait for this model already"),
        ((3, 30, 2, 21), "20 bytes of requests wait for this model already"),
    ],
    ids=str,
)
def test_each_bound_lets_in_as_many_as_it_says(counts: tuple[int, int, int, int], too_much: str | None) -> None:
    bounds = Bounds(requests=3, bytes=30, requests_per_model=2, bytes_per_model=20)
    assert bounds.exceeded(*counts) == too_much


class ScriptedFleet:
    """A fleet that does what the test says."""

    synced = True
    catalog = Catalog(SPEC)

    def __init__(self) -> None:
        self.shown = ModelView(desired=0)
        self.scaled: list[int] = []
        self.recorded: list[LastCommand] = []
        self.refuses = False
        self.may_record = asyncio.Event()
        self.may_record.set()
        self.changes = Changes()

    def view(self, _model: str) -> ModelView:
        return self.shown

    def show(self, view: ModelView) -> None:
        self.shown = view
        self.changes.notify()

    async def scale(self, _model: str, replicas: int) -> None:
        await asyncio.sleep(0)
        self.scaled.append(replicas)
        if self.refuses:
            raise FleetUnavailableError("forbidden")
        self.show(ModelView(desired=replicas))

    async def record(self, _model: str, said: LastCommand) -> None:
        await self.may_record.wait()
        self.recorded.append(said)

    async def changed(self) -> None:
        await self.changes.wait()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@pytest.fixture
async def fleet() -> ScriptedFleet:
    return ScriptedFleet()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def room(fleet: ScriptedFleet, metrics: Metrics) -> WaitingRoom:
    return WaitingRoom(fleet, metrics, LoadHistory(), WaitingSettings(requests=2, requests_per_model=2, bytes=100))


@pytest.fixture
def cancelling(fleet: ScriptedFleet, metrics: Metrics) -> WaitingRoom:
    return WaitingRoom(fleet, metrics, LoadHistory(), WaitingSettings(abandoned_loads=AbandonedLoads.CANCEL))


async def wait(room: WaitingRoom, size: int = 1, *, again: bool = False) -> tuple[Endpoint, ...]:
    with room.place(MODEL, size, again=again):
        return await room.until_ready(MODEL, "alice")


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_many_waiters_share_one_wake_at_the_replicas_of_the_manifest(
    fleet: ScriptedFleet, room: WaitingRoom
) -> None:
    waiters = [asyncio.create_task(room.until_ready(MODEL, "alice")) for _ in range(50)]
    await asyncio.wait(waiters, timeout=0.05)
    assert fleet.scaled == [3]
    fleet.show(ModelView(desired=3, ready=READY))
    assert await asyncio.gather(*waiters) == [READY] * 50


async def test_an_unload_loses_to_a_request_that_came_first(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    waiter = asyncio.create_task(room.until_ready(MODEL, "alice"))
    await asyncio.wait((waiter,), timeout=0.05)
    fleet.show(ModelView(desired=0))
    await asyncio.wait((waiter,), timeout=0.05)
    assert fleet.scaled == [3, 3]
    fleet.show(ModelView(desired=3, ready=READY))
    assert await waiter == READY


async def test_a_failure_ends_every_wait_with_its_reason(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    waiters = [asyncio.create_task(room.until_ready(MODEL, "alice")) for _ in range(3)]
    await asyncio.wait(waiters, timeout=0.05)
    fleet.show(ModelView(desired=3, failure=FAILURE))
    for error in await asyncio.gather(*waiters, return_exceptions=True):
        assert isinstance(error, ApiError)
        assert (error.status, error.detail.code) == (503, "OOMKilled")


async def test_a_fleet_that_cannot_scale_is_told_honestly(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    fleet.refuses = True
    with pytest.raises(ApiError, match="cannot be loaded now: forbidden") as caught:
        await room.until_ready(MODEL, "alice")
    assert caught.value.headers["retry-after"]
    assert (caught.value.status, caught.value.detail.code) == (503, "fleet_unavailable")


async def test_a_waiter_that_leaves_does_not_stop_the_wake_of_the_others(
    fleet: ScriptedFleet, room: WaitingRoom
) -> None:
    first, second = (asyncio.create_task(room.until_ready(MODEL, "alice")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first, second), timeout=0.05)
    assert fleet.scaled == [3]
    fleet.show(ModelView(desired=3, ready=READY))
    assert await second == READY


async def test_a_wake_is_recorded_once_and_nobody_waits_for_the_record(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    fleet.may_record.clear()
    waiters = [asyncio.create_task(room.until_ready(MODEL, "alice")) for _ in range(5)]
    await settled()
    fleet.show(ModelView(desired=3, ready=READY))
    assert await asyncio.gather(*waiters) == [READY] * 5
    fleet.may_record.set()
    await settled()
    assert [(said.action, said.by) for said in fleet.recorded] == [(CommandAction.WAKE, "alice")]


async def test_a_full_room_refuses_and_a_place_that_is_given_back_is_free(
    fleet: ScriptedFleet, metrics: Metrics, room: WaitingRoom
) -> None:
    held = [asyncio.create_task(wait(room)) for _ in range(2)]
    await settled()
    with pytest.raises(ApiError, match="2 requests wait for this model already") as caught:
        await wait(room)
    assert (caught.value.status, caught.value.detail.code) == (429, "too_many_waiting")
    assert caught.value.headers["retry-after"] == "30"
    assert metrics.refusals.labels("m")._value.get() == 1
    held[0].cancel()
    await settled()
    assert room.waiting("m") == 1
    fleet.show(ModelView(desired=3, ready=READY))
    assert await asyncio.gather(held[1], wait(room)) == [READY, READY]
    assert room.waiting("m") == 0


async def test_bytes_count_and_come_back(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    big = asyncio.create_task(wait(room, 100))
    await settled()
    with pytest.raises(ApiError, match="100 bytes of requests wait for a model already"):
        await wait(room, 1)
    big.cancel()
    await settled()
    fleet.show(ModelView(desired=3, ready=READY))
    assert await wait(room, 100) == READY


async def test_one_that_was_let_in_before_is_never_refused(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    held = [asyncio.create_task(wait(room)) for _ in range(2)]
    await settled()
    again = asyncio.create_task(wait(room, 1000, again=True))
    await settled()
    fleet.show(ModelView(desired=3, ready=READY))
    assert await asyncio.gather(again, *held) == [READY] * 3


async def left_alone(room: WaitingRoom, waiters: int = 2) -> None:
    """Let requests come and leave before their model is loaded."""
    tasks = [asyncio.create_task(wait(room)) for _ in range(waiters)]
    await settled()
    for task in tasks:
        task.cancel()
    await settled()


async def test_a_load_that_nobody_waits_for_goes_on(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    await left_alone(room)
    assert fleet.scaled == [3]


async def test_a_load_that_nobody_waits_for_ends_where_that_is_wanted(
    fleet: ScriptedFleet, cancelling: WaitingRoom
) -> None:
    await left_alone(cancelling)
    assert fleet.scaled == [3, 0]


async def test_a_load_whose_waiters_left_before_it_began_ends_too(
    fleet: ScriptedFleet, cancelling: WaitingRoom
) -> None:
    task = asyncio.create_task(wait(cancelling))
    await asyncio.sleep(0)
    task.cancel()
    await settled()
    assert fleet.scaled == [3, 0]


async def test_a_load_that_one_still_waits_for_goes_on(fleet: ScriptedFleet, cancelling: WaitingRoom) -> None:
    stays = asyncio.create_task(wait(cancelling))
    await left_alone(cancelling)
    assert fleet.scaled == [3]
    fleet.show(ModelView(desired=3, ready=READY))
    assert await stays == READY
    assert fleet.scaled == [3], "a loaded model stays when its last waiter has been served"


async def test_a_load_that_somebody_commanded_is_not_ended_by_requests_that_leave(
    fleet: ScriptedFleet, cancelling: WaitingRoom
) -> None:
    await cancelling.wake(MODEL, command(CommandAction.RELOAD, "bob"))
    await left_alone(cancelling)
    assert fleet.scaled == [3]


async def test_a_load_that_requests_began_and_somebody_commanded_goes_on(
    fleet: ScriptedFleet, cancelling: WaitingRoom
) -> None:
    task = asyncio.create_task(wait(cancelling))
    await settled()
    cancelling.keep(MODEL)
    task.cancel()
    await settled()
    assert fleet.scaled == [3]


async def test_an_abandoned_load_that_cannot_be_ended_goes_on(
    fleet: ScriptedFleet, cancelling: WaitingRoom, caplog: pytest.LogCaptureFixture
) -> None:
    task = asyncio.create_task(wait(cancelling))
    await settled()
    fleet.refuses = True
    task.cancel()
    await settled()
    assert "the load that nobody waits for goes on: forbidden" in caplog.text
