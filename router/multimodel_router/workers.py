"""Several router processes on one port: each is whole, for what routers share is the cluster's state alone.

The kernel spreads connections over them. A worker that dies is replaced; the others do not notice.
"""

import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from types import FrameType

from prometheus_client import multiprocess

from multimodel_router.metrics import SHARED_FOLDER
from multimodel_router.settings import Settings

logger = logging.getLogger(__name__)

RESTART_PAUSE = 1.0
LOOK_SECONDS = 0.2

BAD_START = 2
"""The exit code of a worker that says that none can begin, such as for a port that is taken."""

Run = Callable[[Settings], None]


def run_workers(settings: Settings, run: Run) -> None:
    """Run `run` in as many processes as the settings say until SIGTERM or SIGINT, which all of them get."""
    with tempfile.TemporaryDirectory(prefix="multimodel-router-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        Workers(settings, run).keep()


class Workers:
    """The processes and their keeper."""

    def __init__(self, settings: Settings, run: Run) -> None:
        self._settings = settings
        self._run = run
        self._stopping: int | None = None
        """The signal that has come."""
        self._processes: list[SpawnProcess] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def keep(self) -> None:
        """Replace workers that die; return when all have ended after a stop, or one says that none can begin."""
        while self._stopping is None and len(self._processes) < self._settings.workers:
            self._processes.append(self._start())
        while self._stopping is None or any(process.is_alive() for process in self._processes):
            time.sleep(LOOK_SECONDS)
            for index, process in enumerate(self._processes):
                if self._stopping is None and not process.is_alive():
                    self._processes[index] = self._successor(process)
        if any(process.exitcode == BAD_START for process in self._processes):
            raise SystemExit(BAD_START)

    def _successor(self, process: SpawnProcess) -> SpawnProcess:
        multiprocess.mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
        if process.exitcode == BAD_START:
            self._pass_on(signal.SIGTERM, None)
            return process
        logger.error("a worker ended with %s; another takes its place", process.exitcode)
        time.sleep(RESTART_PAUSE)
        return self._start()

    def _start(self) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=self._run, args=(self._settings,))
        process.start()
        if self._stopping is not None:  # the signal came while it was being started
            process.terminate()
        return process

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = number
        for process in self._processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)
