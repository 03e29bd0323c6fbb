"""A host that vanishes without a word: no FIN, no RST, only silence; in a network namespace that the test made."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from multimodel_router.fleet import Endpoint
from multimodel_router.fleet.processes import ProcessFleet
from multimodel_router.fleet.server_process import Launch
from multimodel_router.upstream import Upstream, dial_tcp
from multimodel_testbed.calls import call

pytestmark = pytest.mark.cluster

HERE, THERE = "10.213.77.1", "10.213.77.2"
SAID = "You said: good morning"

Start = Callable[..., Awaitable[Any]]


class FarHost:
    """Another host, as far as TCP can tell; the first model server that is started runs there."""

    def __init__(self, namespace: str, command: Callable[[Launch], list[str]]) -> None:
        self._namespace = namespace
        self._command = command
        self.port: int | None = None

    def start(self, server: Launch) -> list[str]:
        """Return the command line of a model server, the first one's on the far host."""
        if self.port is not None:
            return self._command(server)
        self.port = server.endpoint.port
        here = f"--host={server.endpoint.host}"
        command = [f"--host={THERE}" if part == here else part for part in self._command(server)]
        return [str(shutil.which("ip")), "netns", "exec", self._namespace, *command]

    async def dial(self, endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol]) -> object:
        """Connect to a model server, wherever it runs."""
        return await dial_tcp(endpoint._replace(host=THERE) if endpoint.port == self.port else endpoint, protocol)

    def vanish(self) -> None:
        """Drop every packet to and from it."""
        rules = "add table inet gone\n" + "".join(
            f"add chain inet gone {hook} {{ type filter hook {hook} priority 0; policy drop; }}\n"
            for hook in ("input", "output")
        )
        ip("netns", "exec", self._namespace, "nft", "-f", "-", stdin=rules)


def ip(*arguments: str, stdin: str = "") -> None:
    subprocess.run(["ip", *arguments], input=stdin, text=True, check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"mm-far-{os.getpid()}"
    near, far = f"mmn{os.getpid()}", f"mmf{os.getpid()}"
    ip("netns", "add", name)
    ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
    try:
        ip("address", "add", f"{HERE}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "address", "add", f"{THERE}/30", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        yield name
    finally:
        ip("link", "delete", near)  # sockets that were cut off keep the namespace itself for minutes
        ip("netns", "delete", name)


@pytest.fixture
async def start(namespace: str, manifest: Any, serve: Any, stand_in: Any, impatient: None) -> AsyncIterator[Start]:
    """Start a router of two replicas, one of them far away, that finds silent servers soon."""
    async with AsyncExitStack() as stack:

        async def start_router() -> tuple[Any, FarHost]:
            host = FarHost(namespace, stand_in)
            upstream = Upstream(host.dial)
            spec = manifest([{"name": "abacus", "alias": "math", "min": 2}]).spec
            fleet = ProcessFleet(spec, upstream, command=host.start)
            return await stack.enter_async_context(serve(fleet, upstream)), host

        yield start_router


async def test_what_runs_there_goes_on_elsewhere(start: Start, until: Any, tmp_path: Path) -> None:
    router, host = await start()
    gate = tmp_path / "gate"
    scripted = {"resumable": True, "gate": str(gate)}

    async def ready() -> int:
        return len(router.fleet.view("abacus").ready)

    async def taken() -> int:
        return len(router.endpoints.load)

    async def ejected() -> int:
        return int(router.metrics.ejections.labels("abacus", "deaf")._value.get())

    await until(ready, 2)
    chat = {"messages": [{"role": "user", "content": "good morning"}]}
    begun = [asyncio.create_task(call([router.url], chat | {"stream": True, "standin": scripted})) for _ in range(2)]
    await until(taken, 2)
    host.vanish()
    whole = asyncio.create_task(call([router.url], chat))  # whole or not, begun or not: nothing is lost
    await until(ejected, 1)
    gate.touch()
    answers = [await task for task in (*begun, whole)]
    assert [(answer.good, answer.text) for answer in answers] == [(True, SAID)] * 3
    assert (await call([router.url], chat)).seconds < 0.3, "nobody is sent there again"
