"""The sleep of an engine, as those see it who ask for it: one change at a time, told when it is done."""

import asyncio
from collections.abc import Awaitable, Callable

from multimodel_server.engine.messages import Sleep, Slept, ToEngine, Wake, Woken


class Rest:
    """Sends an engine to sleep and wakes it; a request that reaches a sleeping engine wakes it too."""

    def __init__(
        self,
        send: Callable[[ToEngine], None],
        or_death: Callable[[asyncio.Future[None]], Awaitable[None]],
        resume: Callable[[], None],
    ) -> None:
        """`or_death` waits and raises if the engine ends meanwhile; `resume` lets the requests go on that were held."""
        self._send = send
        self._or_death = or_death
        self._resume = resume
        self._turn = asyncio.Lock()
        self._awaited: type[Slept | Woken] = Woken
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_asleep = False
        self.holds_requests = False
        """Whether new requests are held back: those that run end first, and then the engine sleeps."""

    async def sleep(self, *, keep_weights: bool) -> None:
        """Return when the engine sleeps, which takes as long as its requests do; raises `EngineDiedError`."""
        async with self._turn:
            self.holds_requests = True
            try:
                await self._until(Slept, Sleep(keep_weights))
            finally:
                self.holds_requests = False
                self._resume()

    async def wake(self) -> None:
        """Return when the engine is awake; raises `EngineDiedError`."""
        async with self._turn:
            await self._until(Woken, Wake())

    def heard(self, message: Slept | Woken) -> None:
        """Hear from the engine that it sleeps, or woke by itself or by a message."""
        self.is_asleep = isinstance(message, Slept)
        if isinstance(message, self._awaited) and not self._answer.done():
            self._answer.set_result(None)

    def engine_started(self) -> None:
        """Hear that there is a new engine, which is awake."""
        self.is_asleep = False

    async def _until(self, awaited: type[Slept | Woken], message: Sleep | Wake) -> None:
        """Send a message, which an engine answers whatever its state is, and wait for the answer."""
        self._awaited, self._answer = awaited, asyncio.get_running_loop().create_future()
        self._send(message)
        await self._or_death(self._answer)
