"""The engine's process as its parent sees it: start, messages both ways, kill, and how it ended.

The pipe is read and written by threads, so an engine that stops in the middle of a frame cannot stop the event loop.
"""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

import msgspec

from multimodel_server import logs
from multimodel_server.config import EngineConfig
from multimodel_server.engine.messages import FromEngine, ToEngine, decode_from_engine, encode

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 5.0


class EngineHandle(Protocol):
    """A running engine, as the supervisor uses it."""

    def send(self, message: ToEngine) -> None:
        """Queue a message; lost without an error once the engine has ended."""

    def kill(self) -> None:
        """End the engine at once; `ended` follows."""


class Launch(Protocol):
    """Starts an engine; both callbacks run on the event loop, `ended` once and last, with how the engine ended."""

    def __call__(self, receive: Callable[[FromEngine], None], ended: Callable[[str], None]) -> EngineHandle:
        """Return the started engine."""


class EngineProcess:
    """An engine in a child process that cannot outlive this one."""

    def __init__(
        self, config: EngineConfig, receive: Callable[[FromEngine], None], ended: Callable[[str], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._ended = ended
        self._outbox: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        self._process = context.Process(
            target=_child, args=(config, theirs, os.getpid(), level), name="engine", daemon=True
        )
        # The kernel ends the child when the thread that started it ends: this must be a thread that stays.
        self._process.start()
        theirs.close()
        for work in (self._read, self._write):
            threading.Thread(target=work, name=f"engine-{work.__name__}", daemon=True).start()

    def send(self, message: ToEngine) -> None:
        """Queue a message; lost without an error once the engine has ended."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End the engine at once; `ended` follows."""
        self._process.kill()

    def _read(self) -> None:
        try:
            while True:
                self._on_loop(self._receive, decode_from_engine(self._connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except msgspec.MsgspecError:
            logger.exception("The engine sent something that is no message; killing it")
            self._process.kill()
        self._outbox.put(None)
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._on_loop(self._ended, _how_it_ended(self._process.exitcode))

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send_bytes(encode(message))
            except OSError:
                return  # The reader sees the end of the pipe, and says so once.

    def _on_loop(self, callback: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            logger.debug("The event loop has ended before the engine")


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _child(config: EngineConfig, connection: Connection, parent: int, log_level: str) -> None:
    """Entry of the engine's process."""
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent drains first.
    logs.configure(log_level)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads weights quicker from huge pages
    from multimodel_server.engine.loop import main  # torch: only here, never in the HTTP process

    main(config, connection)


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
