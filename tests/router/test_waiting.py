"""What a request does about a model that is not ready."""

import asyncio

import pytest

from multimodel_api.errors import ApiError
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Changes, Endpoint, FleetUnavailableError, ModelView
from multimodel_router.metrics import Metrics
from multimodel_router.waiting import Step, WaitingRoom, next_step

READY = (Endpoint("192.0.2.1", 8000),)
FAILURE = LoadFailure(reason=FailureReason.OOM_KILLED, message="too big")
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
    ],
    ids=str,
)
def test_next_step(view: ModelView, step: Step | LoadFailure) -> None:
    assert next_step(view) == step


class ScriptedFleet:
    """A fleet that does what the test says."""

    synced = True
    catalog = Catalog(SPEC)

    def __init__(self) -> None:
        self.shown = ModelView(desired=0)
        self.scaled: list[int] = []
        self.refuses = False
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

    async def changed(self) -> None:
        await self.changes.wait()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@pytest.fixture
async def fleet() -> ScriptedFleet:
    return ScriptedFleet()


@pytest.fixture
def room(fleet: ScriptedFleet) -> WaitingRoom:
    return WaitingRoom(fleet, Metrics())


async def test_many_waiters_share_one_wake_at_the_replicas_of_the_manifest(
    fleet: ScriptedFleet, room: WaitingRoom
) -> None:
    waiters = [asyncio.create_task(room.until_ready(MODEL)) for _ in range(50)]
    await asyncio.wait(waiters, timeout=0.05)
    assert fleet.scaled == [3]
    fleet.show(ModelView(desired=3, ready=READY))
    assert await asyncio.gather(*waiters) == [READY] * 50


async def test_an_unload_loses_to_a_request_that_came_first(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    waiter = asyncio.create_task(room.until_ready(MODEL))
    await asyncio.wait((waiter,), timeout=0.05)
    fleet.show(ModelView(desired=0))
    await asyncio.wait((waiter,), timeout=0.05)
    assert fleet.scaled == [3, 3]
    fleet.show(ModelView(desired=3, ready=READY))
    assert await waiter == READY


async def test_a_failure_ends_every_wait_with_its_reason(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    waiters = [asyncio.create_task(room.until_ready(MODEL)) for _ in range(3)]
    await asyncio.wait(waiters, timeout=0.05)
    fleet.show(ModelView(desired=3, failure=FAILURE))
    for error in await asyncio.gather(*waiters, return_exceptions=True):
        assert isinstance(error, ApiError)
        assert (error.status, error.detail.code) == (503, "OOMKilled")


async def test_a_fleet_that_cannot_scale_is_told_honestly(fleet: ScriptedFleet, room: WaitingRoom) -> None:
    fleet.refuses = True
    with pytest.raises(ApiError, match="cannot be loaded now: forbidden") as caught:
        await room.until_ready(MODEL)
    assert caught.value.headers["retry-after"]
    assert (caught.value.status, caught.value.detail.code) == (503, "fleet_unavailable")


async def test_a_waiter_that_leaves_does_not_stop_the_wake_of_the_others(
    fleet: ScriptedFleet, room: WaitingRoom
) -> None:
    first, second = (asyncio.create_task(room.until_ready(MODEL)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first, second), timeout=0.05)
    assert fleet.scaled == [3]
    fleet.show(ModelView(desired=3, ready=READY))
    assert await second == READY
