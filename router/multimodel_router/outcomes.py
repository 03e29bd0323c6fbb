"""Notices when every call of a model fails, and has the fleet tell everybody; the first call that does not ends it."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from multimodel_router.fleet import Fleet

MANY = 5
LONG_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class FailingRow:
    """Calls that failed one after the other; `began` in seconds since the epoch."""

    calls: int
    began: float

    def is_alarming(self, now: float) -> bool:
        """Whether it is long enough, in calls and in time, to be more than bad luck."""
        return self.calls >= MANY and now - self.began >= LONG_SECONDS


class Outcomes:
    """Told how every call ended."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rows: dict[str, FailingRow] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}

    def note(self, model: str, *, succeeded: bool, now: float) -> None:
        """Take a call's end at `now`, in seconds since the epoch."""
        told = self._fleet.view(model).calls_failing
        if succeeded:
            self._rows.pop(model, None)
            if told:
                self._tell(model, None)
            return
        before = self._rows.get(model, FailingRow(0, now))
        row = self._rows[model] = FailingRow(before.calls + 1, before.began)
        if row.is_alarming(now) and not told:
            self._tell(model, datetime.fromtimestamp(row.began, UTC).isoformat(timespec="seconds"))

    def _tell(self, model: str, failing_since: str | None) -> None:
        if model not in self._telling:
            told = self._fleet.record_calls(model, failing_since)
            self._telling[model] = asyncio.create_task(told)
            self._telling[model].add_done_callback(lambda _: self._telling.pop(model))
