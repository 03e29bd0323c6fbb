"""Leader election on a real API server: one leads, another takes over in time, and nobody writes on an old mandate."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from multimodel_operator.api_server import ApiServer, connected
from multimodel_operator.leader import LEASE, Elector, Timing
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key
from multimodel_testbed.control_plane import ControlPlane
from multimodel_testbed.faults import FaultyWay, faulty_way

pytestmark = pytest.mark.control_plane

TIMING = Timing(lease=3)
PATIENCE = 30.0


class Candidate:
    """An elector that runs, and the terms it has led."""

    def __init__(self, api: ApiServer, lease: Key, identity: str) -> None:
        self.elector = Elector(api, lease, identity, TIMING)
        self.began: list[float] = []
        self.ended: list[float] = []
        self.task = asyncio.create_task(self.elector.run(self._lead))

    async def _lead(self) -> None:
        self.began.append(asyncio.get_running_loop().time())
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(asyncio.get_running_loop().time())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


async def until(what: str, look: Callable[[], Any]) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not look():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"{what}: not within {PATIENCE:.0f} s")


@pytest.fixture
def lease() -> Key:
    return Key("default", f"lease-{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def api(api_server: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    async with connected(Metrics()) as server:
        yield server


@pytest.fixture
async def faulty(
    api_server: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[tuple[FaultyWay, ApiServer]]:
    with faulty_way(api_server, tmp_path) as way:
        monkeypatch.setenv("KUBECONFIG", str(way.kubeconfig))
        async with connected(Metrics()) as server:
            yield way, server


async def test_one_leads_and_hands_over_when_it_is_stopped(api: ApiServer, lease: Key) -> None:
    first = Candidate(api, lease, "first")
    await until("the first leads", lambda: first.began)
    second = Candidate(api, lease, "second")
    await asyncio.sleep(TIMING.lease + 1)  # longer than a Lease that nobody renews would last
    assert (len(first.ended), second.began) == (0, [])
    spec: Any = (await api.get(LEASE, lease) or {})["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("first", 3, 0)

    await first.stop()
    assert not first.elector.leads
    await until("the second leads", lambda: second.began)
    assert 0 < second.began[0] - first.ended[0] < TIMING.lease, "handed over, not run out"
    await second.stop()
    spec = (await api.get(LEASE, lease) or {})["spec"]
    assert spec["holderIdentity"] == ""


async def test_a_silent_leader_stops_before_another_leads(
    faulty: tuple[FaultyWay, ApiServer], api: ApiServer, lease: Key
) -> None:
    way, through_faults = faulty
    first = Candidate(through_faults, lease, "first")
    await until("the first leads", lambda: first.began)
    second = Candidate(api, lease, "second")
    way.hanging = True
    cut_off = asyncio.get_running_loop().time()
    await until("the second leads", lambda: second.began)
    assert first.ended, "the first has stopped"
    assert first.ended[0] < second.began[0]
    assert second.began[0] - cut_off < TIMING.lease * 4 / 3
    assert not first.elector.leads

    way.heal()
    await second.stop()
    await until("the first leads again", lambda: len(first.began) == 2)
    await first.stop()


async def test_a_leader_whose_machine_was_suspended_leads_no_more(
    api: ApiServer, lease: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Candidate(api, lease, "first")
    await until("it leads", lambda: first.began)
    assert first.elector.leads
    awake = time.clock_gettime
    slept = {time.CLOCK_BOOTTIME: TIMING.lease}
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + slept.get(clock, 0))
    assert not first.elector.leads, "though the monotonic clock has stood still"
    await first.stop()


async def test_a_short_outage_ends_no_term(faulty: tuple[FaultyWay, ApiServer], lease: Key) -> None:
    way, through_faults = faulty
    first = Candidate(through_faults, lease, "first")
    await until("it leads", lambda: first.began)
    way.status = 503
    await asyncio.sleep(TIMING.retry * 2)
    way.heal()
    await asyncio.sleep(TIMING.renew)
    assert first.elector.leads
    assert not first.ended
    await first.stop()


async def test_a_restart_under_the_same_name_leads_at_once(api: ApiServer, lease: Key) -> None:
    killed = Candidate(api, lease, "pod-0")
    await until("it leads", lambda: killed.began)
    killed.elector._release = _no_release  # type: ignore[method-assign]
    await killed.stop()
    again = Candidate(api, lease, "pod-0")
    began = asyncio.get_running_loop().time()
    await until("it leads again", lambda: again.began)
    assert again.began[0] - began < TIMING.lease / 2
    await again.stop()


async def _no_release() -> None:
    """As when a process is killed."""


async def test_a_fault_in_what_the_leader_does_ends_it(api: ApiServer, lease: Key) -> None:
    async def lead() -> None:
        raise KeyError("a bug")

    elector = Elector(api, lease, "first", TIMING)
    with pytest.raises(KeyError):
        await asyncio.wait_for(elector.run(lead), PATIENCE)
    assert not elector.leads
    spec: Any = (await api.get(LEASE, lease) or {})["spec"]
    assert spec["holderIdentity"] == "", "others need not wait for its Lease to run out"
