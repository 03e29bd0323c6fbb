"""Everything that the operator writes: children, status, Events, replicas; what comes back goes into the cache.

No write is sent unless this operator leads, nor faster than its pace. A process may be stopped for a long time between
the look at its Lease and the write, when another leads long since: so whatever is replaced is so only in the state in
which it was last seen.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from multimodel_api import names
from multimodel_api.names import FieldManager
from multimodel_api.status import withdrawal
from multimodel_operator import objects
from multimodel_operator.api_server import ApiServer, path_of
from multimodel_operator.cache import Cache
from multimodel_operator.errors import AbsentError, ConflictError, NotLeadingError, OutdatedError, RefusedError
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key, Kind, Object, described, kind_of
from multimodel_operator.pace import Pace
from multimodel_operator.plan import Create, Delete, Step, Update, controller_of

REPLICAS_MANAGER = "multimodel-operator-replicas"
"""Takes over `replicas` when the operator lets go of it, lest the API server set it to 1."""

OLDER_THAN_ANY = "1"
"""An object with this resource version can only be made: it is in conflict with whatever exists."""

APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"


class Cluster:
    """The cluster as the operator changes it; every write raises NotLeadingError where another may lead."""

    def __init__(
        self, api: ApiServer, cache: Cache, pace: Pace, metrics: Metrics, leads: Callable[[], bool] = lambda: True
    ) -> None:
        self._api = api
        self._cache = cache
        self._pace = pace
        self._metrics = metrics
        self._leads = leads

    async def take(self, step: Step) -> Object | None:
        """Take one step of a plan and return the object as it is now; None when it is deleted.

        Raises:
            RefusedError: the API server, or an object in the way, does not allow it.
            OutdatedError: the object has changed since it was last seen.
            UnavailableError: there is no answer now.
        """
        try:
            return await self._take(step)
        except RefusedError:
            self._metrics.refusals.labels(step.kind.name).inc()
            raise

    async def _take(self, step: Step) -> Object | None:
        match step:
            case Create(document):
                return await self._create(document)
            case Update(document, _, keep_replicas):
                if keep_replicas is not None:
                    await self._replace("update", _only_replicas(document, keep_replicas), REPLICAS_MANAGER)
                return await self._replace("update", document, FieldManager.OPERATOR)
            case Delete(kind, namespace, name, uid):
                await self._delete(kind, Key(namespace, name), uid)
                return None

    async def write_status(self, key: Key, status: Mapping[str, Any]) -> None:
        """Replace the operator's part of a MultiModel's status; raises RefusedError, Outdated- or UnavailableError."""
        document = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": key.name, "namespace": key.namespace},
            "status": status,
        }
        await self._replace("status", document, FieldManager.OPERATOR)

    async def withdraw_records(self, key: Key, model: str) -> None:
        """Take away what routers have recorded of a model: the model's status would outlive the model with it.

        Raises RefusedError or UnavailableError.
        """
        for manager in (names.command_manager(model), names.calls_manager(model)):
            await self._replace("status", withdrawal(key.namespace, key.name), manager)

    async def scale(self, key: Key, model: str, replicas: int, manager: str) -> None:
        """Set the replicas of a model's Deployment, unless it has changed since it was last seen.

        Raises RefusedError (it has changed, or must not be scaled) or UnavailableError.
        """
        name = Key(key.namespace, names.model_object_name(key.name, model))
        known = self._cache.child(objects.DEPLOYMENT, name)
        if known is None:
            raise AbsentError(f"there is no Deployment {name} to scale")
        seen = {"resourceVersion": known["metadata"]["resourceVersion"]}
        scaled = await self._write(
            "scale",
            objects.DEPLOYMENT,
            "PATCH",
            f"{path_of(objects.DEPLOYMENT, *name)}/scale",
            query=[("fieldManager", manager)],
            body={"metadata": seen, "spec": {"replicas": replicas}},
            content_type=MERGE_PATCH,
        )
        metadata = {**known["metadata"], "resourceVersion": scaled["metadata"]["resourceVersion"]}
        self._cache.put({**known, "metadata": metadata, "spec": {**known["spec"], "replicas": replicas}})

    async def admit(self, pod: Key) -> None:
        """Let a pod run that waits for its model to be let in; raises RefusedError or UnavailableError."""
        gate = {"name": names.RESIDENCY_GATE, "$patch": "delete"}
        with suppress(AbsentError):
            admitted = await self._write(
                "admit",
                objects.POD,
                "PATCH",
                path_of(objects.POD, *pod),
                query=[("fieldManager", FieldManager.AUTOSCALER)],
                body={"spec": {"schedulingGates": [gate]}},
                content_type=STRATEGIC_MERGE_PATCH,
            )
            self._cache.put(admitted)

    async def end_pod(self, pod: Key) -> None:
        """End a pod, which finishes what it has begun; raises RefusedError or UnavailableError."""
        with suppress(AbsentError):
            await self._write("delete", objects.POD, "DELETE", path_of(objects.POD, *pod))

    async def post_event(self, event: Object) -> None:
        """Make an Event, or count a repetition of one that is there; raises RefusedError or UnavailableError."""
        kind, key = objects.EVENT, Key(event["metadata"]["namespace"], event["metadata"]["name"])
        known = await self._read(kind, key)
        if known is None:
            await self._write("create", kind, "POST", path_of(kind, key.namespace), body=event)
            return
        count = known.get("series", {}).get("count", 1) + 1
        series = {"series": {"count": count, "lastObservedTime": event["eventTime"]}}
        await self._write("update", kind, "PATCH", path_of(kind, *key), body=series, content_type=MERGE_PATCH)

    async def _create(self, document: Object) -> Object:
        """Apply a new object; one of its name that is none of ours, and so not in the cache, is not taken over."""
        absent = {**document, "metadata": {**document["metadata"], "resourceVersion": OLDER_THAN_ANY}}
        try:
            return await self._apply("create", absent, FieldManager.OPERATOR)
        except RefusedError:
            kind, metadata = kind_of(document), document["metadata"]
            live = await self._read(kind, Key(metadata["namespace"], metadata["name"]))
            if live is not None and controller_of(live) != controller_of(document):
                words = f"{described(document)} exists and belongs to something else; rename or delete it"
                raise RefusedError(words) from None
            if live is not None:
                self._cache.put(live)
            return await self._replace("create", document, FieldManager.OPERATOR)

    async def _replace(self, verb: str, document: Object, manager: str) -> Object:
        """Apply to an object as it was last seen; raises OutdatedError where it has changed since."""
        version = self._cache.version_of(document)
        seen = {} if version is None else {"resourceVersion": version}
        try:
            return await self._apply(verb, {**document, "metadata": {**document["metadata"], **seen}}, manager)
        except ConflictError as conflict:
            raise OutdatedError(f"{described(document)} has changed since it was last seen: {conflict}") from conflict

    async def _apply(self, verb: str, document: Object, manager: str) -> Object:
        metadata = document["metadata"]
        kind = objects.MULTIMODEL if verb == "status" else kind_of(document)
        path = path_of(kind, metadata["namespace"], metadata["name"])
        applied: Object = await self._write(
            verb,
            kind,
            "PATCH",
            f"{path}/status" if verb == "status" else path,
            query=[("fieldManager", manager), ("force", "true")],
            body=document,
            content_type=APPLY,
        )
        self._cache.put(applied)
        return applied

    async def _delete(self, kind: Kind, key: Key, uid: str) -> None:
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with suppress(AbsentError):
            await self._write("delete", kind, "DELETE", path_of(kind, *key), body=body)
        known = self._cache.child(kind, key)
        if known is not None and known["metadata"]["uid"] == uid:
            self._cache.end(known)

    async def _read(self, kind: Kind, key: Key) -> Object | None:
        await self._pace.turn()
        return await self._api.get(kind, key)

    async def _write(self, verb: str, kind: Kind, method: str, path: str, **request: Any) -> Any:
        await self._pace.turn()
        if not self._leads():
            raise NotLeadingError(f"{verb} {kind.name}: another operator may lead now")
        answer = await self._api.call(method, path, **request)
        self._metrics.writes.labels(kind.name, verb).inc()
        return answer


def _only_replicas(document: Object, replicas: int) -> Object:
    metadata = {field: document["metadata"][field] for field in ("name", "namespace")}
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": metadata,
        "spec": {"replicas": replicas},
    }
