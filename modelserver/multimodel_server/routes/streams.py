"""Answers that end when their client does: streams of server-sent events, and waiting beside the connection."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from multimodel_api.errors import ApiError
from multimodel_api.resume import STATE_HEADER
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.transcript import EventWriter, Transcript

Result = TypeVar("Result")


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
    the stream's last event. Of one answer the stream has markers where they are wanted, and a header with its state.
    """

    media_type = "text/event-stream"

    def __init__(self, choices: Choices, writer: EventWriter, *, marked: bool) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._choices = choices
        self._marked = marked and len(choices.answers) == 1
        self._transcript = Transcript(writer, len(choices.answers), marked=self._marked)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events; leaves no generator open, however the stream ends."""
        async with aclosing(self._groups()) as groups:
            with suppress(ClientDisconnect):
                await until_disconnect(receive, self._send(send, groups))

    async def _send(self, send: Send, groups: AsyncGenerator[bytes, None]) -> None:
        group = await anext(groups)
        if self._marked:
            self.headers[STATE_HEADER] = self._choices.state.encode()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send_group(send, group)
        async for group in groups:
            await _send_group(send, group)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _groups(self) -> AsyncGenerator[bytes, None]:
        """Yield the events that are written at once; raises the `ApiError` that comes before any."""
        if self._choices.is_resumed:
            await asyncio.to_thread(self._replay)
        begun = False
        try:
            async with aclosing(self._choices.pieces()) as pieces:
                async for index, grown in pieces:
                    group = b"".join([self._transcript.written(index, piece) for piece in grown])
                    if group:
                        begun = True
                        yield group
        except ApiError as error:
            if not begun:
                raise
            yield self._transcript.failed(error)

    def _replay(self) -> None:
        """Bring the transcript to where the client has it already."""
        self._transcript.open(0)
        for piece in self._choices.answers[0].replay():
            self._transcript.written(0, piece)


async def _send_group(send: Send, group: bytes) -> None:
    await send({"type": "http.response.body", "body": group, "more_body": True})
