"""How long each model's recent loads took, and so when a client should ask again; no clock, only what it is told."""

from collections import deque
from math import ceil
from statistics import median

from multimodel_api.state import ModelState

REMEMBERED = 5
UNKNOWN_SECONDS = 30.0
"""What a load is expected to take when none has been seen."""

MAX_RETRY_AFTER = 600


class LoadHistory:
    """Told of every model's state whenever it is looked at; times in seconds of one clock."""

    def __init__(self) -> None:
        self._taken: dict[str, deque[float]] = {}
        self._began: dict[str, float] = {}

    def observe(self, model: str, state: ModelState, now: float) -> None:
        """Note where a load begins, and how long it took once the model is loaded."""
        if state is ModelState.RELOADING:
            self._began.setdefault(model, now)
            return
        began = self._began.pop(model, None)
        if state is ModelState.LOADED and began is not None:
            self._taken.setdefault(model, deque(maxlen=REMEMBERED)).append(now - began)

    def taken(self, model: str) -> list[float]:
        """Return the seconds that the last loads took, oldest first."""
        return list(self._taken.get(model, ()))

    def retry_after(self, model: str, now: float) -> int:
        """Return in how many seconds, at least one, the model may be expected to be loaded."""
        expected = median(self._taken[model]) if model in self._taken else UNKNOWN_SECONDS
        elapsed = now - self._began.get(model, now)
        return min(MAX_RETRY_AFTER, max(1, ceil(expected - elapsed)))
