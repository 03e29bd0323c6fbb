"""Several worker processes on one port: all answer, one may die, the numbers add up, and all end together."""

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = pytest.mark.control_plane

PROGRAM = Path(__file__).with_name("played_router.py")
MATH = {"name": "abacus", "alias": "math", "min": 1}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
ANSWERED = re.compile(r'multimodel_router_requests_total{model="abacus",status="200"} ([\d.]+)')
READY = re.compile(r'multimodel_router_ready_endpoints{model="abacus"} ([\d.]+)')
DEADLINE = 60

Until = Callable[[Callable[[], Awaitable[Any]], Any], Awaitable[None]]


class Workers:
    """A router of two workers; `seen` counts the answers by the worker that gave them."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log
        self.seen: dict[str, int] = {}

    async def ask(self, **more: Any) -> httpx.Response:
        """Send a request on a connection of its own."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=DEADLINE) as http:
            reply = await http.post("/v1/chat/completions", json=CHAT | more)
        worker = reply.headers["x-request-id"].partition("-")[0]
        self.seen[worker] = self.seen.get(worker, 0) + 1
        return reply

    async def ask_all(self) -> int:
        """Ask until there has been an answer of two workers; return how many there have been."""
        while len(self.seen) < 2:
            assert (await self.ask()).status_code == 200
        return len(self.seen)

    async def number(self, pattern: re.Pattern[str]) -> float:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=DEADLINE) as http:
            try:
                found = pattern.search((await http.get("/metrics")).text)
            except httpx.TransportError:
                return 0
        return float(found[1]) if found else 0

    async def ready(self) -> float:
        return await self.number(READY)

    def pids(self) -> set[int]:
        """Return the processes of the workers, not Python's own helper beside them."""
        children = psutil.Process(self.process.pid).children()
        living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return {child.pid for child in living if "spawn_main" in " ".join(child.cmdline())}

    async def end(self) -> None:
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        if self.process.returncode is None:
            for process in family:
                process.kill()
        await self.process.wait()


@pytest.fixture
async def workers(cluster: Any, manifest: Callable[..., Any], until: Until, tmp_path: Path) -> AsyncIterator[Workers]:
    await cluster.apply(manifest([MATH]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "router.log"
    options = ["--fleet=kubernetes", "--multimodel=mm", f"--namespace={cluster.namespace}", f"--port={port}"]
    command = [sys.executable, str(PROGRAM), *options, "--workers=2"]
    access = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "PLAYED_PODS": str(cluster.addresses)}
    with log.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(*command, env=access, stderr=stderr)
    made = Workers(process, f"http://127.0.0.1:{port}", log)
    try:

        async def listening() -> int:
            return log.read_text().count("MultiModel answers on")

        await until(listening, 2)
        await until(made.ready, 1)
        yield made
    finally:
        if process.returncode is None:
            await made.end()


async def test_all_answer_and_one_that_is_killed_is_replaced(workers: Workers, until: Until) -> None:
    async with asyncio.timeout(DEADLINE):
        assert await workers.ask_all() == 2
    answered = sum(workers.seen.values())
    for _ in range(3):  # whichever worker is asked
        assert await workers.number(ANSWERED) == answered
        assert await workers.number(READY) == 1

    (victim, _) = workers.pids()
    psutil.Process(victim).kill()

    async def gone() -> bool:
        return victim not in workers.pids()

    await until(gone, True)
    for _ in range(10):
        assert (await workers.ask()).status_code == 200

    async def replaced() -> int:
        return len(workers.pids())

    await until(replaced, 2)
    workers.seen.clear()
    async with asyncio.timeout(DEADLINE):
        await workers.ask_all()
    assert await workers.number(ANSWERED) == answered + 10 + sum(workers.seen.values())


async def test_a_stop_ends_all_when_the_running_answers_are_whole(
    workers: Workers, tmp_path: Path, until: Until
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    request = asyncio.create_task(workers.ask(standin={"gate": str(gate), "begun": str(begun)}))
    await until(lambda: asyncio.to_thread(begun.exists), True)
    pids = workers.pids()
    workers.process.send_signal(signal.SIGTERM)
    await asyncio.wait((request,), timeout=0.5)
    assert not request.done()
    gate.touch()
    assert (await request).status_code == 200
    async with asyncio.timeout(DEADLINE):
        assert await workers.process.wait() == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "Traceback" not in workers.log.read_text()


async def test_a_stop_while_one_is_replaced_ends_all(workers: Workers, until: Until) -> None:
    psutil.Process(workers.pids().pop()).kill()

    async def noticed() -> bool:
        return "another takes its place" in workers.log.read_text()

    await until(noticed, True)
    workers.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE):
        assert await workers.process.wait() == 0
