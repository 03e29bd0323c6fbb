"""The fleet of a cluster: Deployments that the operator makes, scaled and watched through the API server."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes_asyncio import client, config
from pydantic import ValidationError

from multimodel_api import names
from multimodel_api.manifest import Model, MultiModel
from multimodel_api.pod_status import is_leaving
from multimodel_api.progress import LoadProgress
from multimodel_api.served import as_served
from multimodel_api.state import ModelState
from multimodel_api.status import LastCommand, calls_record, command_record
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Changes, FleetUnavailableError, ModelView, objects, unload_of
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.reflector import Event, Object, Reflector, SourceUnavailableError
from multimodel_router.upstream import Upstream

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
"""A call to the API server without an answer for this long has failed; a watch is given so long beyond its own end."""

PROGRESS_INTERVAL = 1.0

GROUPS = {
    names.PLURAL: f"/apis/{names.API_VERSION}",
    "deployments": "/apis/apps/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
    "pods": "/api/v1",
}
"""Where the API server serves each kind that is watched."""


async def cluster_access() -> client.Configuration:
    """Return the access that KUBECONFIG gives, in a pod without it that of the service account.

    Raises:
        FleetUnavailableError: there is neither.
    """
    access = client.Configuration()
    kubeconfig = os.environ.get("KUBECONFIG")
    try:
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=access)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(kubeconfig, client_configuration=access)
    except config.ConfigException as error:
        raise FleetUnavailableError(f"no access to a cluster ({error}); set KUBECONFIG, or run in a pod") from error
    return access


class KubernetesFleet:
    """The models of one MultiModel in a namespace."""

    def __init__(self, multimodel: str, namespace: str, upstream: Upstream, access: client.Configuration) -> None:
        self.catalog = Catalog()
        self._multimodel = multimodel
        self._namespace = namespace
        self._probe = Probe(upstream)
        self._changes = Changes()
        self._commands: dict[str, LastCommand] = {}
        self._calls_failing: set[str] = set()
        self._recording = asyncio.Lock()
        """So that a later command is never written before an earlier one."""
        self._api = ApiServer(access)
        instance = f"{names.LABEL_INSTANCE}={multimodel}"
        model_servers = f"{instance},{names.LABEL_COMPONENT}={names.Component.MODEL_SERVER}"
        self._multimodels = self._reflector(names.PLURAL, fieldSelector=f"metadata.name={multimodel}")
        self._deployments = self._reflector("deployments", labelSelector=model_servers)
        self._slices = self._reflector("endpointslices", labelSelector=instance)
        self._pods = self._reflector("pods", labelSelector=instance)
        self._reflectors = (self._multimodels, self._deployments, self._slices, self._pods)
        self._spec_version: str | None = None
        self._progress: dict[str, LoadProgress] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def synced(self) -> bool:
        """Whether everything has been listed at least once."""
        return all(reflector.synced for reflector in self._reflectors)

    @property
    def abandoned(self) -> bool:
        """Whether every pod of the MultiModel is being deleted: its namespace is, or it is itself."""
        pods = self._pods.objects.values()
        return bool(pods) and all(is_leaving(pod) for pod in pods)

    def view(self, model: str) -> ModelView:
        """Return what the cluster shows of a model."""
        found = next((known for known in self.catalog.models if known.name == model), None)
        if found is None:
            return ModelView(desired=None)
        name = self._object_name(model)
        slices = [s for s in self._slices.objects.values() if objects.label(s, objects.SERVICE_LABEL) == name]
        deployment = self._deployments.objects.get(name)
        servers = [pod for pod in self._pods.objects.values() if objects.label(pod, names.LABEL_MODEL)]
        view = objects.model_view(found, deployment, slices, self._pods_of(model), self._progress.get(model), servers)
        unload = unload_of(self._commands.get(model))
        return dataclasses.replace(view, unload=unload, calls_failing=model in self._calls_failing)

    async def scale(self, model: str, replicas: int) -> None:
        """Patch the `scale` of a model's Deployment; raises FleetUnavailableError."""
        name = self._object_name(model)
        path = f"{self._path('deployments')}/{name}/scale"
        try:
            scaled = await self._api.merge_patch(path, {"spec": {"replicas": replicas}}, names.FieldManager.ROUTER)
        except SourceUnavailableError as unavailable:
            raise FleetUnavailableError(f"the Deployment {name} cannot be scaled: {unavailable}") from unavailable
        known = self._deployments.objects.get(name)
        if known:
            self._deployments.put(objects.as_scaled(known, scaled))

    async def record(self, model: str, command: LastCommand) -> None:
        """Write a command into the MultiModel's status, where every router and every reader finds it."""
        self._commands[model] = command
        document = command_record(self._namespace, self._multimodel, model, command)
        try:
            async with self._recording:
                await self._apply_status(document, names.command_manager(model))
        except SourceUnavailableError as unavailable:
            logger.warning("model %s: the %s by %s is not recorded: %s", model, command.action, command.by, unavailable)

    async def record_calls(self, model: str, failing_since: str | None) -> None:
        """Write into the MultiModel's status since when every call of a model fails, or that one has not."""
        document = calls_record(self._namespace, self._multimodel, model, failing_since)
        try:
            await self._apply_status(document, names.calls_manager(model))
        except SourceUnavailableError as unavailable:
            logger.warning("model %s: whether calls fail is not recorded: %s", model, unavailable)
        else:
            (self._calls_failing.add if failing_since else self._calls_failing.discard)(model)

    async def changed(self) -> None:
        """Return when anything has changed since the call."""
        await self._changes.wait()

    async def start(self) -> None:
        """Begin to watch; returns at once."""
        self._api.connect()
        self._tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]
        self._tasks.append(asyncio.create_task(self._follow_loads()))

    async def stop(self) -> None:
        """End the watches; the pods stay as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()

    def _reflector(self, plural: str, **selector: str) -> Reflector:
        return Reflector(ApiSource(self._api, plural, self._path(plural), selector), self._on_change)

    def _path(self, plural: str) -> str:
        return f"{GROUPS[plural]}/namespaces/{self._namespace}/{plural}"

    async def _apply_status(self, document: Mapping[str, Any], manager: str) -> None:
        await self._api.apply(f"{self._path(names.PLURAL)}/{self._multimodel}/status", document, manager)

    def _on_change(self) -> None:
        self._read_spec()
        self._changes.notify()

    def _read_spec(self) -> None:
        """Take the MultiModel into the catalog; one that this router cannot read leaves the last one standing."""
        found = self._multimodels.objects.get(self._multimodel)
        version = found["metadata"]["resourceVersion"] if found else None
        if version == self._spec_version:
            return
        self._spec_version = version
        self._commands = objects.last_commands(found) if found else {}
        self._calls_failing = objects.failing_calls(found) if found else set()
        try:
            spec = as_served(MultiModel.model_validate(found).spec, objects.status_of(found)) if found else None
            self.catalog = Catalog(spec)
        except ValidationError as error:
            logger.error("the MultiModel %s cannot be read: %s", self._multimodel, error)  # noqa: TRY400

    def _pods_of(self, model: str) -> list[Object]:
        return [pod for pod in self._pods.objects.values() if objects.label(pod, names.LABEL_MODEL) == model]

    def _object_name(self, model: str) -> str:
        return names.model_object_name(self._multimodel, model)

    async def _follow_loads(self) -> None:
        """Ask the pods of models that load how far they are."""
        while True:
            await asyncio.gather(*(self._follow_load(model) for model in self.catalog.models))
            await asyncio.sleep(PROGRESS_INTERVAL)

    async def _follow_load(self, model: Model) -> None:
        loading = self.view(model.name).state in (ModelState.RELOADING, ModelState.INTERNAL_ERROR)
        endpoint = objects.loading_endpoint(self._pods_of(model.name)) if loading else None
        progress = await self._probe.progress(endpoint) if endpoint else None
        if progress == self._progress.get(model.name):
            return
        self._progress.pop(model.name, None)
        if progress:
            self._progress[model.name] = progress
        self._changes.notify()


class ApiServer:
    """The calls that are made to the API server; all raise SourceUnavailableError."""

    def __init__(self, access: client.Configuration) -> None:
        self._access = access

    def connect(self) -> None:
        """Get ready for calls; needs a running event loop."""
        self._client = client.ApiClient(self._access)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def merge_patch(self, path: str, patch: Mapping[str, Any], manager: str) -> Object:
        """Patch an object and return it as it is now."""
        headers = {"Content-Type": "application/merge-patch+json"}
        async with self.call("PATCH", path, {"fieldManager": manager}, CALL_SECONDS, headers, patch) as response:
            patched: Object = await response.json()
        return patched

    async def apply(self, path: str, document: Mapping[str, Any], manager: str) -> None:
        """Apply a document, on the server's side and by force."""
        query = {"fieldManager": manager, "force": "true"}
        headers = {"Content-Type": "application/apply-patch+yaml"}
        async with self.call("PATCH", path, query, CALL_SECONDS, headers, document):
            pass

    @contextlib.asynccontextmanager
    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        seconds: float,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield a successful response whose body has still to be read."""
        try:
            response = await self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", **(headers or {})},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=seconds,
            )
            async with response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise SourceUnavailableError(_refusal(response.status, await response.text()))
                yield response
        except (aiohttp.ClientError, TimeoutError, ValueError) as cause:
            raise SourceUnavailableError(f"the API server does not answer: {cause!r}") from cause


class ApiSource:
    """One kind of object in one namespace, through the API server."""

    def __init__(self, api: ApiServer, kind: str, path: str, selector: dict[str, str]) -> None:
        self.kind = kind
        self._api = api
        self._path = path
        self._selector = selector

    async def list(self) -> tuple[list[Object], str]:
        """Return all objects and the version of the list."""
        async with self._api.call("GET", self._path, self._selector, CALL_SECONDS) as response:
            document = await response.json()
        return document["items"], document["metadata"]["resourceVersion"]

    @contextlib.asynccontextmanager
    async def watch(self, version: str, seconds: int) -> AsyncIterator[AsyncIterator[Event]]:
        """Yield what changes after `version`, for as long."""
        query = self._selector | {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(seconds)}
        async with self._api.call("GET", self._path, query, seconds + CALL_SECONDS) as response:
            yield _events(response)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    async for line in response.content:
        event = json.loads(line)
        if event["type"] == "ERROR":  # most often 410: the version is too old, and a fresh list helps
            raise SourceUnavailableError(event["object"].get("message", "the watch ended with an error"))
        yield event["type"], event["object"]


def _refusal(status: int, body: str) -> str:
    try:
        return f"the API server refused: {json.loads(body)['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the API server answered with status {status}"
