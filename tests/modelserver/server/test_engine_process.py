"""The supervisor over a real engine process that raises."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from multimodel_api.failures import LoadFailure
from multimodel_server.config import EngineConfig
from multimodel_server.engine.messages import FromEngine, Heartbeat, Sampling
from multimodel_server.engine_process import EngineProcess
from multimodel_server.progress import LoadClock
from multimodel_server.supervisor import Supervisor


class Observer:
    """Counts reboots."""

    def __init__(self) -> None:
        self.reboots = asyncio.Event()
        self.heartbeats: list[Heartbeat] = []

    def heard(self, heartbeat: Heartbeat) -> None:
        self.heartbeats.append(heartbeat)

    def waited(self, seconds: float) -> None:
        pass

    def rebooted(self) -> None:
        self.reboots.set()

    def gave_up(self, failure: LoadFailure) -> None:
        raise AssertionError(failure)


async def test_an_engine_that_raises_is_rebooted(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    engines: list[EngineProcess] = []
    observer = Observer()
    config = EngineConfig(model_dir=tiny_model)

    def launch(receive: Callable[[FromEngine], None], ended: Callable[[str], None]) -> EngineProcess:
        engines.append(EngineProcess(config, receive, ended))
        return engines[-1]

    supervisor = Supervisor(
        launch,
        observer,
        model_id="tiny",
        warm_up_ids=[5],
        progress=LoadClock(asyncio.get_running_loop().time),
    )
    await supervisor.start()
    try:
        engines[0]._connection.send_bytes(b"\xc1 is no message, so the engine's loop raises")
        async with asyncio.timeout(60):
            await observer.reboots.wait()
            with supervisor.generation([5, 6], Sampling(max_tokens=3)) as generation:
                answer = [token async for tokens in generation.tokens() for token in tokens.token_ids]
    finally:
        await supervisor.stop()
    assert len(answer) == 3
    assert len(engines) == 2
    assert "Engine tiny is dead, rebooting" in caplog.messages
    assert engines[0]._process.exitcode == 1
    assert observer.heartbeats
