"""Answers that end when their client does: streams of server-sent events, and waiting beside the connection."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from multimodel_api.errors import ApiError

Result = TypeVar("Result")

DONE = "[DONE]"


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
    """Server-sent events, each the JSON text of one `data` field.

    The status is sent with the first event, so an error before it is an ordinary error response; a later one is
    the stream's last event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events

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
            await _send_event(send, error.body.model_dump_json())
        else:
            await _send_event(send, DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, event: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
