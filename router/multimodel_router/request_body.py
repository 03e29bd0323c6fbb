"""Request bodies, read whole within the limit."""

from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from multimodel_api.errors import ApiError, invalid_request
from multimodel_router.settings import MAX_BODY_BYTES


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return a request's body.

    Raises:
        ApiError: the body is longer than the limit (413), or its declared length is no number (400).
        ClientDisconnect: the client left before the body was whole.
    """
    _refuse_declared_length(scope)
    chunks: list[bytes] = []
    length = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        length += len(chunk)
        if length > MAX_BODY_BYTES:
            raise _too_large()
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _refuse_declared_length(scope: Scope) -> None:
    declared = dict(scope["headers"]).get(b"content-length")
    if declared is None:
        return
    if not declared.isdigit():
        raise invalid_request(f"The header content-length is no number: {declared!r}.")
    if int(declared) > MAX_BODY_BYTES:
        raise _too_large()


def _too_large() -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request body is longer than {MAX_BODY_BYTES // 2**20} MiB; send less.",
        code="request_too_large",
    )
