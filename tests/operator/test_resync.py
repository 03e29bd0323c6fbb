"""Looking at everything: what the probes say meanwhile, and patience with an API server that is not there yet."""

import asyncio
from collections.abc import Sequence

import pytest

from multimodel_operator import health, resync
from multimodel_operator.errors import DefinitionMissingError, UnavailableError
from multimodel_operator.health import Health
from multimodel_operator.objects import Key
from multimodel_operator.resync import Resync
from multimodel_operator.workqueue import WorkQueue

A = Key("team", "a")


class FaultyCluster:
    """Answers from a script: keys, or an error to raise."""

    def __init__(self, *answers: Sequence[Key] | Exception) -> None:
        self.answers = list(answers)

    async def multimodels(self, _: str | None) -> Sequence[Key]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Worked:
    def __init__(self) -> None:
        self.keys: asyncio.Queue[Key] = asyncio.Queue()
        self.queue = WorkQueue(self.keys.put, 1)


async def test_it_waits_for_the_definition(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(resync, "FIRST_LOOK_SECONDS", 0)
    worked, state = Worked(), Health(lambda: 0.0)
    cluster = FaultyCluster(DefinitionMissingError("install the CRD"), UnavailableError("429"), [A])
    await Resync(cluster, worked.queue, state, None).until_answered()  # type: ignore[arg-type]
    assert "install the CRD" in caplog.text
    assert state.ready
    task = asyncio.create_task(worked.queue.run())
    assert await asyncio.wait_for(worked.keys.get(), 5) == A
    task.cancel()
    await asyncio.wait((task,))


async def test_not_ready_but_alive_while_the_api_server_is_away() -> None:
    state = Health(lambda: 0.0)
    assert not state.ready
    looks = Resync(FaultyCluster([], UnavailableError("away")), Worked().queue, state, None)  # type: ignore[arg-type]
    assert await looks.look()
    assert (state.ready, state.live) == (True, True)
    assert not await looks.look()
    assert (state.ready, state.live) == (False, True)


async def test_not_alive_when_work_or_looking_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Health(lambda: health.STUCK_SECONDS + 1).live
    state = Health(lambda: 0.0)
    monkeypatch.setattr(health, "STUCK_SECONDS", 0.01)
    await asyncio.sleep(0.02)
    assert not state.live
    state.looked(reached=False)
    assert state.live
