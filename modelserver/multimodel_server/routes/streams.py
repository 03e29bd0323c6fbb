"""Answers that end when their client does: streams of server-sent events, and waiting beside the connection."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, NamedTuple, TypeVar

from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from multimodel_api.errors import ApiError

Result = TypeVar("Result")


class Event(NamedTuple):
    """One server-sent event; without a name it is a message."""

    data: str
    name: str | None = None

    def encode(self) -> bytes:
        """Return the event as it is sent."""
        name = "" if self.name is None else f"event: {self.name}\n"
        return f"{name}data: {self.data}\n\n".encode()


DONE = Event("[DONE]")


def openai_failure(error: ApiError) -> Event:
    """Return the event that tells OpenAI's clients of an error."""
    return Event(error.body.model_dump_json())


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; cancels it and raises `ClientDisconnect` once the client has gone.

    The request's body must have been read: then the next message from the client is its end.
    """
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.wait([answer, gone])


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events.

    The status is sent with the first event, so an error before it is an ordinary error response; a later one is
    the stream's last event. A stream without an error ends with `done`, if there is such an event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        *,
        failure: Callable[[ApiError], Event] = openai_failure,
        done: Event | None = DONE,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._failure = failure
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events; leaves no generator open, however the stream ends."""
        async with aclosing(self._events):
            with suppress(ClientDisconnect):
                await until_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        event = await anext(self._events)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await _send_event(send, event)
            async for event in self._events:
                await _send_event(send, event)
        except ApiError as error:
            await _send_event(send, self._failure(error))
        else:
            if self._done is not None:
                await _send_event(send, self._done)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, event: Event) -> None:
    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
