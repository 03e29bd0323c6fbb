"""One run of a model server as a child process: its port, environment and failure file, its end."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multimodel_api import launch
from multimodel_api.failures import LoadFailure
from multimodel_api.manifest import EngineSettings, Model
from multimodel_router.fleet import Endpoint

TETHER = Path(__file__).with_name("tether.py")
LOOPBACK = "127.0.0.1"

DRAIN_SECONDS = 600
"""How long a model server goes on with what it has begun when its model is unloaded."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a model server is started with."""

    model: Model
    engine: EngineSettings
    endpoint: Endpoint
    failure_file: Path


Command = Callable[[Launch], Sequence[str]]


def model_server_command(start: Launch) -> list[str]:
    """Return the command line of the real model server."""
    arguments = launch.server_arguments(
        start.model,
        start.engine,
        host=start.endpoint.host,
        port=start.endpoint.port,
        failure_file=str(start.failure_file),
    )
    return [sys.executable, "-m", launch.MODULE, *arguments, f"--drain-seconds={DRAIN_SECONDS}"]


class ServerProcess:
    """A running model server."""

    def __init__(self, process: asyncio.subprocess.Process, start: Launch) -> None:
        self._process = process
        self._start = start
        self.endpoint = start.endpoint

    @classmethod
    async def spawn(cls, start: Launch, command: Command) -> "ServerProcess":
        """Start a model server that dies with this process; it inherits standard output and error."""
        tethered = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command(start)]
        start.failure_file.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *tethered, stdin=asyncio.subprocess.DEVNULL, env=os.environ | environment_of(start.model)
        )
        return cls(process, start)

    async def ended(self) -> str:
        """Wait for the process to end and say how it did."""
        code = await self._process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def failure(self) -> LoadFailure | None:
        """Return the typed failure that the process left."""
        try:
            return LoadFailure.parse(self._start.failure_file.read_text(errors="replace"))
        except FileNotFoundError:
            return None

    async def stop(self, grace: float) -> None:
        """Let the process finish what it has begun; after `grace` seconds it is killed with all of its group."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the process and its group at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


def environment_of(model: Model) -> Mapping[str, str]:
    """Return the environment entries of a model that carry a plain value; the others exist in a cluster only."""
    return {entry["name"]: str(entry["value"]) for entry in model.env if "value" in entry}


def free_endpoint() -> Endpoint:
    """Return a loopback endpoint whose port nobody uses now; a server that loses it meanwhile is started on another."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return Endpoint(LOOPBACK, probe.getsockname()[1])
