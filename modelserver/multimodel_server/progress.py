"""The progress of one load, kept where the load runs and read by the routes."""

from collections.abc import Callable

from multimodel_api.failures import LoadFailure
from multimodel_api.progress import LoadPhase, LoadProgress

_ENDS = {LoadPhase.READY, LoadPhase.FAILED}


class LoadClock:
    """Adds up the seconds of each phase; written by one task, read by any."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.restart()

    def restart(self) -> None:
        """Begin a new load."""
        self.phase = LoadPhase.STARTING
        self._entered = self._now()
        self._seconds: dict[LoadPhase, float] = {}
        self._bytes = (0, 0)
        self._failure: LoadFailure | None = None

    def enter(self, phase: LoadPhase) -> None:
        """Go to `phase`; going back to an earlier one adds to its seconds."""
        if phase is not self.phase:
            self._seconds = self._spent()
            self.phase, self._entered, self._bytes = phase, self._now(), (0, 0)

    def count(self, bytes_done: int, bytes_total: int) -> None:
        """Note how many bytes of the current phase are done."""
        self._bytes = (bytes_done, bytes_total)

    def fail(self, failure: LoadFailure) -> None:
        """End the load."""
        self.enter(LoadPhase.FAILED)
        self._failure = failure

    def snapshot(self) -> LoadProgress:
        """Return the progress as of now."""
        done, total = self._bytes
        return LoadProgress(
            phase=self.phase, bytes_done=done, bytes_total=total, seconds=self._spent(), failure=self._failure
        )

    def _spent(self) -> dict[LoadPhase, float]:
        if self.phase in _ENDS:
            return self._seconds
        spent = self._seconds.get(self.phase, 0.0) + self._now() - self._entered
        return {**self._seconds, self.phase: round(spent, 3)}
