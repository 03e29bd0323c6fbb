"""One line per long step, with its elapsed time, so that a person sees that it lives."""

import subprocess
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

_console = Console(stderr=True, highlight=False, soft_wrap=True)
HEARTBEAT_SECONDS = 30.0


class Progress:
    """Shows that `step` is under way: a spinner on a terminal, a line now and then in a log file."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._began = time.monotonic()
        self._spoke = self._began
        self._status = Status(step, console=_console)

    def __enter__(self) -> Self:
        if _console.is_terminal:
            self._status.start()
        else:
            _console.print(f"{self._step} …")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()
        _console.print(f"{self._step}: {'failed after' if kind else ''} {self._elapsed():.1f} s")

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for `process` to end, showing the elapsed time meanwhile."""
        while True:
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                self.beat()
            else:
                return

    def beat(self) -> None:
        """Say how long the step has taken so far."""
        if _console.is_terminal:
            self._status.update(f"{self._step}: {self._elapsed():.0f} s")
        elif time.monotonic() - self._spoke > HEARTBEAT_SECONDS:
            self._spoke = time.monotonic()
            _console.print(f"{self._step}: {self._elapsed():.0f} s …")

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def say(line: str) -> None:
    """Print one line for the person who waits."""
    _console.print(line)
