"""Where every request enters: browsers' questions, inference routes to the relay, all others to the application."""

import asyncio
import time
from collections.abc import Coroutine
from http import HTTPStatus

from fastapi import FastAPI

from multimodel_api import errors
from multimodel_router.call import AccessLog, Call
from multimodel_router.cors import Cors
from multimodel_router.exchange import Exchange
from multimodel_router.http1.asgi import serve_asgi
from multimodel_router.http1.reply import Reply
from multimodel_router.http1.request import Request
from multimodel_router.metrics import Metrics
from multimodel_router.outcomes import Outcomes
from multimodel_router.relay import INFERENCE_PATHS, Relay, answer_error


class Front:
    """The handler of all requests."""

    def __init__(
        self, app: FastAPI, relay: Relay, cors: Cors, metrics: Metrics, outcomes: Outcomes, access_log: AccessLog
    ) -> None:
        self._app = app
        self._relay = relay
        self._cors = cors
        self._metrics = metrics
        self._outcomes = outcomes
        self._access_log = access_log

    def handle(self, request: Request, reply: Reply) -> Coroutine[None, None, None]:
        """Answer a request, and note what it was; a client that leaves cancels it.

        What can be sent to a model server at once is sent before this returns: a task would begin later.
        """
        call = Call(request, asyncio.get_running_loop().time())
        begun = self._relay.head_start(call, reply) if self._may_infer(request) else None
        return self._answer_and_note(call, reply, begun)

    async def _answer_and_note(self, call: Call, reply: Reply, begun: Exchange | None) -> None:
        request, loop = call.request, asyncio.get_running_loop()
        try:
            await self._answer(call, reply, begun)
        except errors.ApiError as error:
            call.failed = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            answer_error(request, reply, error)
        except Exception:
            call.status, call.failed = HTTPStatus.INTERNAL_SERVER_ERROR, True
            raise
        finally:
            call.status = reply.status or call.status
            call.bytes_sent = reply.bytes_sent
            call.first_byte = reply.first_byte
            call.measure(self._metrics, loop.time())
            self._note_outcome(call)
            call.log(self._access_log, loop.time())

    def note_refusal(self, request: Request, reply: Reply) -> None:
        """Log what was no request."""
        now = asyncio.get_running_loop().time()
        call = Call(request, now, status=reply.status, first_byte=reply.first_byte, bytes_sent=reply.bytes_sent)
        call.log(self._access_log, now)

    def _note_outcome(self, call: Call) -> None:
        if call.model is not None and call.succeeded is not None:
            self._outcomes.note(call.model.name, succeeded=call.succeeded, now=time.time())

    def _may_infer(self, request: Request) -> bool:
        return request.method == "POST" and request.path in INFERENCE_PATHS and not self._cors.forbids(request)

    async def _answer(self, call: Call, reply: Reply, begun: Exchange | None) -> None:
        request = call.request
        if begun or self._may_infer(request):
            await self._relay.answer(call, reply, begun)
        elif (asked_before := self._cors.preflight(request)) is not None:
            reply.start(HTTPStatus.NO_CONTENT, asked_before)
            reply.end()
        elif self._cors.forbids(request):
            raise _foreign_page(request)
        elif request.path not in INFERENCE_PATHS:
            await serve_asgi(self._app, request, reply)
        else:
            raise _method_not_allowed(request)


def _foreign_page(request: Request) -> errors.ApiError:
    origin = (request.header(b"origin") or b"another site").decode("latin-1")
    return errors.ApiError(
        HTTPStatus.FORBIDDEN,
        f"Web pages of {origin} may not call this router; start it with --cors-origin {origin} if they should.",
        code="origin_not_allowed",
    )


def _method_not_allowed(request: Request) -> errors.ApiError:
    return errors.ApiError(
        HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} does not take {request.method}.", code="method_not_allowed"
    )
