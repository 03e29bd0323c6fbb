"""Requests to the API server: how they are sent, paged and streamed, and what their failures mean here.

Objects stay JSON documents as they come: the plan compares them with the documents it wants, and a typed client would
drop fields that it does not know.
"""

import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes_asyncio import client, config

from multimodel_operator.errors import AbsentError, ConflictError, OperatorError, RefusedError, UnavailableError
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key, Kind, Object

REQUEST_SECONDS = 30.0
PAGE_OBJECTS = 100
"""A list comes in pages of so many objects: decoding one page holds nothing else up for long."""

_REFUSALS = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}

WatchEvent = tuple[str, Object]
"""ADDED, MODIFIED or DELETED, and the object."""


class ApiServer:
    """The API server, with the rights of this process."""

    def __init__(self, api: client.ApiClient, metrics: Metrics) -> None:
        self._api = api
        self._metrics = metrics

    async def get(self, kind: Kind, key: Key) -> Object | None:
        """Return an object, None where there is none; raises RefusedError or UnavailableError."""
        try:
            found: Object = await self.call("GET", path_of(kind, *key))
        except AbsentError:
            return None
        return found

    async def list(self, kind: Kind, namespace: str | None, labels: str) -> tuple[list[Object], str]:
        """Return the objects that a label selector finds, and the version of the list.

        Raises RefusedError, AbsentError (the kind is not known) or UnavailableError.
        """
        query = {"limit": str(PAGE_OBJECTS), "labelSelector": labels}
        found: list[Object] = []
        while True:
            page = await self.call("GET", path_of(kind, namespace), query=list(query.items()))
            found += ({"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page["items"])
            if not page["metadata"].get("continue"):
                return found, page["metadata"]["resourceVersion"]
            query["continue"] = page["metadata"]["continue"]

    @asynccontextmanager
    async def watch(
        self, kind: Kind, namespace: str | None, labels: str, version: str, seconds: float
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Yield what changes after `version`; the API server ends it after about `seconds`.

        Raises RefusedError or UnavailableError.
        """
        query = {"watch": "true", "resourceVersion": version, "labelSelector": labels}
        query["timeoutSeconds"] = str(int(seconds) + 1)
        path = path_of(kind, namespace)
        with self._failures(f"GET {path}"):
            async with await self._send(
                "GET", path, list(query.items()), seconds=seconds + REQUEST_SECONDS
            ) as response:
                yield _events(response)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send a request and return the decoded answer; raises RefusedError, AbsentError or UnavailableError."""
        with self._failures(f"{method} {path}"):
            async with await self._send(method, path, query, body, content_type) as response:
                return json.loads(await response.read())

    async def _send(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Object | None = None,
        content_type: str = "application/json",
        seconds: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request and return the successful response, whose body has still to be read."""
        response: aiohttp.ClientResponse = await self._api.call_api(
            path,
            method,
            query_params=list(query),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=REQUEST_SECONDS if seconds is None else seconds,
        )
        self._metrics.api_requests.labels(method, response.status).inc()
        if response.status >= HTTPStatus.BAD_REQUEST:
            async with response:
                raise _explained(response.status, await response.text(), f"{method} {path}")
        return response

    @contextmanager
    def _failures(self, request: str) -> Iterator[None]:
        """Turn what goes wrong on the way, or with the answer, into an UnavailableError."""
        try:
            yield
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._metrics.api_requests.labels(request.split()[0], "none").inc()
            raise UnavailableError(f"{request}: {error or 'no answer in time'}") from error


@asynccontextmanager
async def connected(metrics: Metrics) -> AsyncIterator[ApiServer]:
    """Connect with the service account of this pod or, outside of a pod, with the current kubeconfig."""
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
    async with client.ApiClient(settings) as api:
        yield ApiServer(api, metrics)


def path_of(kind: Kind, namespace: str | None = None, name: str | None = None) -> str:
    """Return the path of a kind's objects, in one namespace or all, or of one object."""
    parts = ["/apis" if "/" in kind.api_version else "/api", kind.api_version]
    if namespace is not None:
        parts += ["namespaces", namespace]
    return "/".join([*parts, kind.plural] if name is None else [*parts, kind.plural, name])


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[WatchEvent]:
    async for line in response.content:
        event = json.loads(line)
        if event["type"] == "ERROR":  # most often 410: the version is too old, and a fresh list helps
            raise UnavailableError(event["object"].get("message", "the watch ended with an error"))
        yield event["type"], event["object"]


def _explained(status: int, body: str, request: str) -> OperatorError:
    words = _server_words(body)
    if status == HTTPStatus.NOT_FOUND:
        return AbsentError(words)
    if status == HTTPStatus.CONFLICT:
        return ConflictError(words)
    if status in _REFUSALS:
        return RefusedError(words)
    return UnavailableError(f"{request}: {status} {words}")


def _server_words(body: str) -> str:
    """Return the message of the Status object in the answer, or the answer as it is."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body
