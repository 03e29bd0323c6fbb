"""The inference routes at ASGI's level: the body read within its limit, the answer's bytes sent on as they come."""

import asyncio
import time

from starlette.types import Receive, Scope, Send

from multimodel_api import errors
from multimodel_api.manifest import Model
from multimodel_router.metrics import Metrics
from multimodel_router.relay import Answer, InferenceRequest, Relay
from multimodel_router.request_body import read_body
from multimodel_router.upstream import ConnectionBrokenError

INFERENCE_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
"""Paths that a model server may offer; a request's body names the model, and the rest is passed through."""


class InferenceRoute:
    """An ASGI application that answers one request through the relay."""

    def __init__(self, relay: Relay, metrics: Metrics) -> None:
        self._relay = relay
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and stop at once when the client is gone."""
        body = await read_body(scope, receive)
        answering = asyncio.create_task(self._answer(_inference_request(scope, body), send))
        client_gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((answering, client_gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            client_gone.cancel()
            if not answering.done():
                answering.cancel()
        await _finished(answering)

    async def _answer(self, request: InferenceRequest, send: Send) -> None:
        model = self._relay.model_of(request.body)
        with self._metrics.in_flight.labels(model.name).track_inprogress():
            began = time.monotonic()
            try:
                answer = await self._relay.open(model, request)
            except errors.ApiError as error:
                self._count(model, error.status)
                raise
            try:
                self._metrics.first_byte_seconds.labels(model.name).observe(time.monotonic() - began)
                self._count(model, answer.status)
                await _send_on(answer, send)
            finally:
                answer.close()

    def _count(self, model: Model, status: int) -> None:
        self._metrics.requests.labels(model.name, str(int(status))).inc()


def _inference_request(scope: Scope, body: bytes) -> InferenceRequest:
    query = scope["query_string"].decode("ascii")
    path = scope["raw_path"].decode("ascii")
    return InferenceRequest(scope["method"], f"{path}?{query}" if query else path, list(scope["headers"]), body)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _finished(answering: asyncio.Task[None]) -> None:
    """Raise what ended the answer, unless it was the client who left."""
    try:
        await answering
    except asyncio.CancelledError:
        if not answering.cancelled():
            raise


async def _send_on(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    try:
        async for chunk in answer.body():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except ConnectionBrokenError:
        return  # returning before the last message makes the server close the connection: the client sees the cut
    await send({"type": "http.response.body", "body": b"", "more_body": False})
