"""Ctrl-C as events, since an exception raised wherever the program happens to be can leave a lock locked."""

import asyncio
import signal
from types import TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, the first stop signal sets `stop` and the next one `at_once`; ignored signals stay ignored."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self._signals = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def __enter__(self) -> Self:
        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, self._received)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _received(self) -> None:
        (self.at_once if self.stop.is_set() else self.stop).set()
