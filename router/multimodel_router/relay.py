"""The inference routes: find the model and who asks, then relay the answer; every failure in the client's own shape."""

import asyncio
from http import HTTPStatus

from pydantic import BaseModel

from multimodel_api import errors
from multimodel_api.anthropic import is_messages_path, messages_error
from multimodel_api.manifest import Model
from multimodel_router.access import Access, Action
from multimodel_router.addressed import read_addressed
from multimodel_router.call import Call
from multimodel_router.catalog import Catalog
from multimodel_router.exchange import Desk, Exchange, error_event
from multimodel_router.fleet import Fleet
from multimodel_router.http1.reply import Reply
from multimodel_router.http1.request import Headers, Request

INFERENCE_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
    )
)
"""Paths that a model server may offer; a request's body names the model, and the rest is passed through."""

SYNC_SECONDS = 10.0
"""How long requests wait for a router that has just been started to see its fleet."""


class Relay:
    """Answers inference requests from the model servers of a fleet."""

    def __init__(self, desk: Desk, access: Access) -> None:
        self._desk = desk
        self._access = access

    def head_start(self, call: Call, reply: Reply) -> Exchange | None:
        """Send a request on at once where nothing has to be waited for; `answer` has to follow, and takes it."""
        if not self._desk.fleet.synced:
            return None
        try:
            exchange = self._exchange(call, reply)
        except errors.ApiError:  # which `answer` meets again
            return None
        exchange.begin()
        return exchange

    async def answer(self, call: Call, reply: Reply, begun: Exchange | None) -> None:
        """Answer one request; a client that leaves cancels it.

        Raises:
            ApiError: the answer is an error of the router's own.
        """
        if begun is None:
            await until_synced(self._desk.fleet)
        exchange = begun or self._exchange(call, reply)
        with self._desk.metrics.under_way(exchange.model.name):
            await exchange.run()

    def _exchange(self, call: Call, reply: Reply) -> Exchange:
        """Return what answers a request; raises ApiError."""
        addressed = read_addressed(call.request.body)
        call.model = find_model(self._desk.fleet.catalog, self._access, call.request.headers, addressed.model)
        call.caller = self._access.caller(call.request.headers, Action.INFER, call.model).name
        return Exchange(self._desk, call, call.model, reply, stream=bool(addressed.stream))


async def until_synced(fleet: Fleet) -> None:
    """Wait until the fleet has been seen, as models that are there would look unknown; raises the 503."""
    if fleet.synced:
        return
    try:
        async with asyncio.timeout(SYNC_SECONDS):
            while not fleet.synced:
                await fleet.changed()
    except TimeoutError as cause:
        raise errors.server_error(
            "The router has not seen yet which models there are; its log says why.",
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            code="fleet_unavailable",
        ) from cause


def find_model(catalog: Catalog, access: Access, headers: Headers, model_id: str | None) -> Model:
    """Return the model that an id means.

    Raises:
        ApiError: 401 without a known key; else the 404, which names only what the caller may see.
    """
    caller = access.caller(headers, None, None)
    return catalog.resolve(model_id, lambda model: access.may_see(caller, model))


def answer_error(request: Request, reply: Reply, error: errors.ApiError) -> None:
    """Tell the client what went wrong: with a status, or within an answer that has begun."""
    body: BaseModel = messages_error(error) if is_messages_path(request.target) else error.body
    if not reply.started:
        reply.document(error.status, body, error.headers.items())
    elif reply.is_event_stream:
        reply.write(error_event(request.target, body.model_dump_json().encode()))
        reply.end()
    elif reply.first_byte is None:
        reply.write(body.model_dump_json().encode())
        reply.end()
