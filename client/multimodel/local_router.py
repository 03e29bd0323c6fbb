"""The router as a child process of this one: it starts with `multimodel up` and never outlives it."""

import asyncio
import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from multimodel.client import API_KEY_VARIABLE
from multimodel_api.launch import router_arguments
from multimodel_api.router_spec import RouterSpec

GRACE_SECONDS = 75.0
"""How long the router may take to finish its running requests and then to end its model servers."""

LAST_LINES_SECONDS = 2.0

_NEEDED = {"uvicorn": "router", "torch": "modelserver"}
_PR_SET_PDEATHSIG = 1


class CannotStartError(ValueError):
    """The router cannot start here; the message names the option or the command that helps."""


class RouterEndedError(RuntimeError):
    """The router ended although nobody stopped it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the router listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """URL at which this machine reaches it."""
        reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{reachable}]:{self.port}" if ":" in reachable else f"http://{reachable}:{self.port}"


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that callers need: a folder of entries, and the key by which this process asks the router itself."""

    folder: Path
    own: str


def check_can_start(address: Address) -> None:
    """Check what would make the router fail at once.

    Raises:
        CannotStartError: a package is missing, or the address is taken, forbidden or not of this machine.
    """
    missing = [extra for package, extra in _NEEDED.items() if find_spec(package) is None]
    if missing:
        raise CannotStartError(
            f"serving on this machine needs more packages; install them: pip install 'multimodel[{','.join(missing)}]'"
        )
    try:
        candidates = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise CannotStartError(f"--host {address.host}: {error.strerror}; try --host 127.0.0.1") from error
    family, kind, protocol, _, target = candidates[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            raise CannotStartError(_refusal(address, error)) from error


def _refusal(address: Address, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            fix = f"port {address.port} is in use on {address.host}; choose another: --port {address.port + 1}"
        case errno.EACCES:
            fix = f"port {address.port} needs more rights; choose one above 1023: --port 1234"
        case errno.EADDRNOTAVAIL:
            fix = f"{address.host} is no address of this machine; try --host 127.0.0.1"
        case _:
            fix = f"cannot listen on {address.host} port {address.port}: {error.strerror}; try --host or --port"
    return fix


@asynccontextmanager
async def running_router(
    command: Sequence[str], *, log: Callable[[str], None], at_once: asyncio.Event
) -> AsyncIterator["LocalRouter"]:
    """Run a router, and end it with its model servers: in order, unless `at_once` is set.

    `log` gets each line that the router and its model servers write.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env={name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        process_group=0,  # Ctrl-C reaches this process alone, which then stops the router in order
        preexec_fn=_end_with_parent(os.getpid()) if sys.platform == "linux" else None,
    )
    logging = asyncio.create_task(_forward_lines(process, log))
    try:
        yield LocalRouter(process)
    finally:
        await _stop(process, at_once)
        await asyncio.wait((logging,), timeout=LAST_LINES_SECONDS)
        logging.cancel()


def router_command(manifest: Path, router: RouterSpec, address: Address, api_keys: ApiKeys | None) -> list[str]:
    """Return the command that serves a manifest; `router` is the manifest's part about the router."""
    arguments = [
        "--fleet=processes",
        f"--manifest={manifest}",
        f"--host={address.host}",
        f"--port={address.port}",
        *router_arguments(router),
    ]
    if api_keys:
        arguments.append(f"--api-keys={api_keys.folder}")
    return [sys.executable, "-m", "multimodel_router", *arguments]


class LocalRouter:
    """A running router process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ended(self) -> NoReturn:
        """Wait until the router ends.

        Raises:
            RouterEndedError: it has ended.
        """
        code = await self._process.wait()
        raise RouterEndedError(f"the router ended unexpectedly (exit code {code}); its last lines say why")


async def _stop(process: asyncio.subprocess.Process, at_once: asyncio.Event) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    waits = [asyncio.create_task(process.wait()), asyncio.create_task(at_once.wait())]
    await asyncio.wait(waits, timeout=GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    waits[1].cancel()


def _end_with_parent(parent: int) -> Callable[[], None]:
    """Return what the child runs before it becomes the router: the kernel ends it when this process is gone."""
    libc = ctypes.CDLL(None)  # loaded before the fork, where loading is safe

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return end_with_parent


async def _forward_lines(process: asyncio.subprocess.Process, log: Callable[[str], None]) -> None:
    while process.stdout:
        try:
            line = await process.stdout.readline()
        except ValueError:  # longer than the reader's buffer: left out, so that the writer is never blocked
            continue
        if not line:
            return
        log(line.decode(errors="replace").rstrip("\n"))
