"""Every request has an id: the client's `x-request-id` or one made here, sent on to the model server and back."""

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestId:
    """ASGI middleware that honours or makes the id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its id, and its answer back with the same."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given(scope) or uuid.uuid4().hex.encode()
        others = [header for header in scope["headers"] if header[0] != HEADER]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (HEADER, request_id)]
            await send(message)

        await self._app({**scope, "headers": [*others, (HEADER, request_id)]}, receive, send_with_id)


def _given(scope: Scope) -> bytes | None:
    given: bytes | None = dict(scope["headers"]).get(HEADER)
    return given if given and _ACCEPTABLE.fullmatch(given) else None
