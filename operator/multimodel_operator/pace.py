"""Keeps the operator from asking more of the API server than it may: so many requests a second, and a burst."""

import asyncio


class Pace:
    """A token bucket: `burst` turns at once, then `rate` a second, in the order of asking."""

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._burst = burst
        self._next = 0.0

    async def turn(self) -> None:
        """Return when the caller may go ahead."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - self._burst * self._interval) + self._interval
        if self._next > now:
            await asyncio.sleep(self._next - now)
