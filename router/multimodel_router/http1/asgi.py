"""The bridge to ASGI applications, for the routes that need no speed."""

import asyncio
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from multimodel_router.http1.reply import Reply
from multimodel_router.http1.request import Request


async def serve_asgi(app: ASGIApp, request: Request, reply: Reply) -> None:
    """Let an application answer a request; a client that leaves cancels it."""
    body = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await asyncio.get_running_loop().create_future()  # the caller is cancelled when the client leaves
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.start(message["status"], list(message.get("headers", [])))
            return
        reply.write(message.get("body", b""))
        if not message.get("more_body", False):
            reply.end()
        await reply.writable()

    await app(_scope(request), receive, send)


def _scope(request: Request) -> dict[str, Any]:
    path, _, query = request.target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET" if request.method == "HEAD" else request.method,  # the reply to HEAD leaves its body out
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": request.headers,
        "client": (request.peer, 0),
        "server": None,
    }
