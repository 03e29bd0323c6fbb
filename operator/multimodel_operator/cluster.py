"""The operator's only contact with the API server: observe, apply, delete, status, events.

Objects stay JSON documents as they come: the plan compares them with the documents it wants, and a typed client would
drop fields that it does not know.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes_asyncio import client, config
from kubernetes_asyncio.client.exceptions import ApiException

from multimodel_api import names
from multimodel_api.names import FieldManager
from multimodel_operator import objects
from multimodel_operator.errors import DefinitionMissingError, RefusedError, UnavailableError
from multimodel_operator.objects import Key, Kind, Object, Observed, described, kind_of
from multimodel_operator.plan import Create, Delete, Step, Update, controller_of

REQUEST_SECONDS = 30.0
REPLICAS_MANAGER = "multimodel-operator-replicas"
"""Takes over `replicas` when the operator lets go of it, lest the API server set it to 1."""

_REFUSALS = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}


class _NotFoundError(UnavailableError):
    """The object or its namespace is gone."""


class Cluster:
    """The API server, with the rights of this process."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def multimodels(self, namespace: str | None) -> list[Key]:
        """List the MultiModels of a namespace or, for None, of all.

        Raises:
            DefinitionMissingError: the API server does not know MultiModels.
            UnavailableError: there is no answer now.
        """
        try:
            listed = await self._call("GET", _path(objects.MULTIMODEL, namespace))
        except _NotFoundError as error:
            raise DefinitionMissingError(
                f"the API server has no {names.PLURAL}.{names.GROUP}: install the CRD, "
                "for example with `kubectl apply --server-side -f crds/`"
            ) from error
        return [Key(item["metadata"]["namespace"], item["metadata"]["name"]) for item in listed["items"]]

    async def observe(self, key: Key) -> Observed | None:
        """Return a MultiModel with its children and pods, all read afresh; None when there is no such MultiModel.

        Raises UnavailableError.
        """
        try:
            multimodel = await self._call("GET", _path(objects.MULTIMODEL, key.namespace, key.name))
        except _NotFoundError:
            return None
        ours = f"{names.LABEL_INSTANCE}={key.name}"
        of_each_kind = await asyncio.gather(
            *(self._list(kind, key.namespace, ours) for kind in (*objects.CHILD_KINDS, objects.POD))
        )
        children = [child for of_kind in of_each_kind[:-1] for child in of_kind]
        return Observed(multimodel, tuple(children), tuple(of_each_kind[-1]))

    async def take(self, step: Step) -> Object | None:
        """Take one step of a plan and return the object as it is now; None when it is deleted.

        Raises:
            RefusedError: the API server, or an object in the way, does not allow it.
            UnavailableError: there is no answer now.
        """
        match step:
            case Create(document):
                await self._refuse_strangers(document)
                return await self._apply(document, FieldManager.OPERATOR)
            case Update(document, _, keep_replicas):
                if keep_replicas is not None:
                    await self._apply(_only_replicas(document, keep_replicas), REPLICAS_MANAGER)
                return await self._apply(document, FieldManager.OPERATOR)
            case Delete(kind, namespace, name, uid):
                await self._delete(kind, Key(namespace, name), uid)
                return None

    async def write_status(self, key: Key, status: Mapping[str, Any]) -> None:
        """Replace the operator's status of a MultiModel; raises RefusedError or UnavailableError."""
        document = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": key.name, "namespace": key.namespace},
            "status": status,
        }
        await self._apply(document, FieldManager.OPERATOR, objects.MULTIMODEL, "/status")

    async def post_event(self, event: Object) -> None:
        """Make an Event, or count a repetition of one that is there; raises RefusedError or UnavailableError."""
        key = Key(event["metadata"]["namespace"], event["metadata"]["name"])
        known = await self._find(objects.EVENT, key)
        if known is None:
            await self._call("POST", _path(objects.EVENT, key.namespace), body=event)
            return
        count = known.get("series", {}).get("count", 1) + 1
        series = {"series": {"count": count, "lastObservedTime": event["eventTime"]}}
        await self._call("PATCH", _path(objects.EVENT, *key), body=series, content_type="application/merge-patch+json")

    async def _list(self, kind: Kind, namespace: str, labels: str) -> list[Object]:
        listed = await self._call("GET", _path(kind, namespace), query=[("labelSelector", labels)])
        return [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in listed["items"]]

    async def _find(self, kind: Kind, key: Key) -> Object | None:
        try:
            found: Object = await self._call("GET", _path(kind, *key))
        except _NotFoundError:
            return None
        return found

    async def _refuse_strangers(self, document: Object) -> None:
        """Refuse to take over an object of the wanted name that is none of ours: it would not have been listed."""
        key = Key(document["metadata"]["namespace"], document["metadata"]["name"])
        live = await self._find(kind_of(document), key)
        if live is not None and controller_of(live) != controller_of(document):
            raise RefusedError(f"{described(document)} exists and belongs to something else; rename or delete it")

    async def _apply(self, document: Object, manager: str, kind: Kind | None = None, subresource: str = "") -> Object:
        metadata = document["metadata"]
        path = _path(kind or kind_of(document), metadata["namespace"], metadata["name"]) + subresource
        query = [("fieldManager", manager), ("force", "true")]
        applied: Object = await self._call(
            "PATCH", path, query=query, body=document, content_type="application/apply-patch+yaml"
        )
        return applied

    async def _delete(self, kind: Kind, key: Key, uid: str) -> None:
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with suppress(_NotFoundError):
            await self._call("DELETE", _path(kind, *key), body=body)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send a request and return the decoded answer; every failure becomes one of our errors."""
        try:
            return await self._api.call_api(
                path,
                method,
                query_params=list(query),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                response_types_map=dict.fromkeys((200, 201, 202), "object"),
                _return_http_data_only=True,
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            raise _explained(error, f"{method} {path}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(f"{method} {path}: {error or 'no answer in time'}") from error


@asynccontextmanager
async def connected() -> AsyncIterator[Cluster]:
    """Connect with the service account of this pod or, outside of a pod, with the current kubeconfig."""
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=settings)
    async with client.ApiClient(settings) as api:
        yield Cluster(api)


def _path(kind: Kind, namespace: str | None = None, name: str | None = None) -> str:
    root = "/apis" if "/" in kind.api_version else "/api"
    parts = [root, kind.api_version]
    if namespace is not None:
        parts += ["namespaces", namespace]
    return "/".join([*parts, kind.plural] if name is None else [*parts, kind.plural, name])


def _only_replicas(document: Object, replicas: int) -> Object:
    metadata = {field: document["metadata"][field] for field in ("name", "namespace")}
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": metadata,
        "spec": {"replicas": replicas},
    }


def _explained(error: ApiException, request: str) -> RefusedError | UnavailableError:
    words = _server_words(error)
    if error.status == HTTPStatus.NOT_FOUND:
        return _NotFoundError(words)
    if error.status in _REFUSALS:
        return RefusedError(words)
    return UnavailableError(f"{request}: {error.status} {words}")


def _server_words(error: ApiException) -> str:
    """Return the message of the Status object in the answer, or the answer as it is."""
    try:
        document = json.loads(error.body or "")
    except ValueError:
        return str(error.body or error.reason)
    return str(document.get("message", error.reason))
