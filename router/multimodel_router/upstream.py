"""A small HTTP/1.1 client for model servers: it keeps connections open between requests."""

import asyncio
from collections.abc import Awaitable, Callable

from multimodel_router.fleet import Endpoint
from multimodel_router.upstream_connection import (
    ConnectionBrokenError,
    Outgoing,
    Response,
    UpstreamConnection,
    UpstreamError,
)

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 4.0
"""Idle connections are not used longer: uvicorn closes them after 5 s, and a race costs a retry."""

Dial = Callable[[Endpoint, Callable[[], asyncio.Protocol]], Awaitable[object]]


class ConnectError(UpstreamError):
    """No connection: refused, no route, or not in time; the request was not sent."""


async def dial_tcp(endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol]) -> object:
    """Connect to an endpoint."""
    return await asyncio.get_running_loop().create_connection(protocol, endpoint.host, endpoint.port)


class Upstream:
    """Connections to model servers, kept open between requests."""

    def __init__(self, dial: Dial = dial_tcp) -> None:
        self._dial = dial
        self._idle: dict[Endpoint, dict[UpstreamConnection, None]] = {}

    def begin(self, request: Outgoing) -> UpstreamConnection | None:
        """Send a request over a connection that was kept, if there is one; `send` has to follow, which takes it."""
        kept = self._take_idle(request.endpoint)
        if kept:
            kept.begin(request)
        return kept

    async def send(self, request: Outgoing, begun: UpstreamConnection | None = None) -> Response:
        """Send a request and return its answer as soon as the head has come, or at its end if it is spliced then.

        Raises:
            ConnectError: the request was not sent.
            ConnectionBrokenError: it may have been.
        """
        kept = begun or self.begin(request)
        if kept:
            try:
                return await self._answer(request, kept)
            except ConnectionBrokenError:
                if kept.received:
                    raise  # an answer had begun: not merely a connection that the server gave up while it was idle
        fresh = await self._connect(request.endpoint)
        fresh.begin(request)
        return await self._answer(request, fresh)

    def close(self) -> None:
        """Close the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def _answer(self, request: Outgoing, connection: UpstreamConnection) -> Response:
        try:
            await connection.answered()
        except BaseException:
            connection.abort()
            raise
        return Response(connection, lambda done: self._release(request.endpoint, done))

    async def _connect(self, endpoint: Endpoint) -> UpstreamConnection:
        connection = UpstreamConnection(lambda lost: self._forget(endpoint, lost))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._dial(endpoint, lambda: connection)
        except OSError as cause:  # TimeoutError is one
            connection.abort()
            raise ConnectError(f"{endpoint.host}:{endpoint.port}: {cause or 'no answer'}") from cause
        except BaseException:
            connection.abort()  # it may have been made just before
            raise
        return connection

    def _take_idle(self, endpoint: Endpoint) -> UpstreamConnection | None:
        """Return the connection that was used last, if it is still good."""
        idle = self._idle.get(endpoint)
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while idle:
            connection, _ = idle.popitem()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def _release(self, endpoint: Endpoint, connection: UpstreamConnection) -> None:
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.setdefault(endpoint, {})[connection] = None
        else:
            connection.abort()

    def _forget(self, endpoint: Endpoint, lost: UpstreamConnection) -> None:
        """Drop a connection that ended while it was idle, so that endpoints that went are not remembered."""
        idle = self._idle.get(endpoint)
        if idle is None:
            return
        idle.pop(lost, None)
        if not idle:
            del self._idle[endpoint]
