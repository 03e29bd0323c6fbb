"""Which endpoint takes a request, and that no count leaks."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodel_api.manifest import MultiModelSpec
from multimodel_router.balance import LOAD_BOUND, Balance, least_load, prefix_hash
from multimodel_router.endpoints import Endpoints, overdue
from multimodel_router.fleet import Endpoint, ModelView, Unload
from multimodel_router.fleet.probe import Probe
from multimodel_router.upstream import Upstream

A, B, C, D = (Endpoint("192.0.2.1", port) for port in (1, 2, 3, 4))
MODEL = MultiModelSpec.model_validate({"models": [{"name": "m", "plain": {"modelId": "m"}}]}).models[0]

loads = st.lists(st.integers(0, 50), min_size=1, max_size=8)


def test_the_least_loaded_takes_it_and_the_first_of_a_tie() -> None:
    assert least_load([A, B, C], {A: 2, B: 1, C: 1}) == B
    assert least_load([A, B], {}) == A
    assert least_load([A, B], {A: 1}) == B


@given(loads, st.binary(max_size=20))
def test_no_endpoint_gets_much_more_than_its_share(counts: list[int], prefix: bytes) -> None:
    candidates = [Endpoint("192.0.2.1", port) for port in range(len(counts))]
    load = dict(zip(candidates, counts, strict=True))
    chosen = prefix_hash(candidates, load, prefix)
    assert load[chosen] < LOAD_BOUND * (sum(counts) + 1) / len(counts)


def test_a_prefix_stays_where_it_is_when_another_endpoint_comes_or_goes() -> None:
    prefixes = [f"conversation {number}".encode() for number in range(400)]
    before = {prefix: prefix_hash([A, B, C], {}, prefix) for prefix in prefixes}
    assert all(count > 80 for count in Counter(before.values()).values())
    for prefix in prefixes:
        assert prefix_hash([C, B, A], {}, prefix) == before[prefix]
        after = prefix_hash([A, B, C, D], {}, prefix)
        assert after in (before[prefix], D)
        if before[prefix] != C:
            assert prefix_hash([A, B], {}, prefix) == before[prefix]


@pytest.fixture
async def endpoints() -> Endpoints:
    return Endpoints(Probe(Upstream()))


async def test_leases_spread_and_give_back(endpoints: Endpoints) -> None:
    leases = [endpoints.acquire(MODEL, [A, B], Balance.LEAST_LOAD) for _ in range(4)]
    assert endpoints.load == {A: 2, B: 2}
    leases[1].release()
    leases[1].release()
    assert endpoints.load == {A: 2, B: 1}
    assert endpoints.acquire(MODEL, [A, B], Balance.LEAST_LOAD).endpoint == B
    for lease in leases:
        lease.release()
    assert endpoints.load == {B: 1}


async def test_a_prefix_goes_elsewhere_only_when_its_endpoint_is_busy(endpoints: Endpoints) -> None:
    def acquire() -> Endpoint:
        return endpoints.acquire(MODEL, [A, B], Balance.PREFIX_HASH, b"once upon a time").endpoint

    first, second, third = acquire(), acquire(), acquire()
    assert first == second
    assert third != first, "two of three requests are more than 1.25 times the mean"


@pytest.mark.parametrize(
    ("desired", "began", "now", "is_overdue"),
    [
        (0, 99.0, 104.9, False),
        (0, 99.0, 105.1, True),
        (0, 100.1, 105.1, False),
        (1, 99.0, 105.1, False),
    ],
)
def test_an_unload_gives_running_answers_their_time(desired: int, began: float, now: float, is_overdue: bool) -> None:
    view = ModelView(desired=desired, unload=Unload(at=100.0, drain_seconds=5.0))
    assert overdue(view, began, now) is is_overdue
    assert not overdue(ModelView(desired=desired), began, now)


@pytest.mark.parametrize("before", [True, False], ids=["before anybody waits", "while one waits"])
@pytest.mark.parametrize("client_leaves", [True, False])
async def test_lost_patience_is_told_from_a_client_that_leaves(
    endpoints: Endpoints, before: bool, client_leaves: bool
) -> None:
    lease = endpoints.acquire(MODEL, [A], Balance.LEAST_LOAD)
    if before:
        lease.lose_patience()

    async def wait() -> bool:
        lease.hold()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return lease.gave_up()
        raise AssertionError

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    if not before:
        lease.lose_patience()
    if client_leaves:
        waiting.cancel()
    assert await waiting is not client_leaves
