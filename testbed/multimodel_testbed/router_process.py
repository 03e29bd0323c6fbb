"""A router as a process that is started, restarted and killed at one port."""

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

START_SECONDS = 60.0
LOOK_SECONDS = 0.05


class RouterProcess:
    """Runs `program`, a script that takes the router's arguments; `url` stays the same over restarts."""

    def __init__(self, program: Path, options: Sequence[str], environment: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, str(program), *options, f"--port={port}"]
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *, ready_endpoints: int = 0) -> None:
        """Start it, and wait until it knows its fleet and so many endpoints; raises TimeoutError."""
        self._process = await asyncio.create_subprocess_exec(*self._command, env=self._environment)
        async with asyncio.timeout(START_SECONDS), httpx.AsyncClient(base_url=self.url, trust_env=False) as http:
            while not await _is_ready(http, ready_endpoints):  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()

    async def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def _is_ready(http: httpx.AsyncClient, ready_endpoints: int) -> bool:
    try:
        if not (await http.get("/health/ready")).is_success:
            return False
        page = (await http.get("/metrics")).text
    except httpx.TransportError:
        return False
    counts = [line.split()[-1] for line in page.splitlines() if line.startswith("multimodel_router_ready_endpoints{")]
    return sum(map(float, counts)) >= ready_endpoints
