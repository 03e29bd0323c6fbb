"""Decides what to write: what should exist against what does; pure, and each step says why in words."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from multimodel_api import names
from multimodel_api.names import FieldManager
from multimodel_operator import drift
from multimodel_operator.objects import Kind, Object, Observed, kind_of, label_of, name_of
from multimodel_operator.owned import Child


@dataclass(frozen=True)
class _Write:
    """Something done to the object that `document` describes."""

    document: Object
    reason: str

    @property
    def kind(self) -> Kind:
        return kind_of(self.document)

    @property
    def name(self) -> str:
        return name_of(self.document)


@dataclass(frozen=True)
class Create(_Write):
    """Make an object that is not there."""


@dataclass(frozen=True)
class Update(_Write):
    """Apply our fields to an object; `keep_replicas` is a count that must outlive our letting go of the field."""

    keep_replicas: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove the very object that was seen."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    reason: str


Step = Create | Update | Delete


def make_plan(wanted: Sequence[Child], observed: Observed, spared: Collection[str] = ()) -> list[Step]:
    """Return the steps that turn what is observed into what is wanted; none when all is as it should be.

    The objects of `spared` models stay as they are, wanted or not.
    """
    steps: list[Step] = []
    kept: set[tuple[str, str]] = set()
    uid = observed.multimodel["metadata"]["uid"]
    for child in wanted:
        kept.add((child.document["kind"], name_of(child.document)))
        live = observed.child(kind_of(child.document), name_of(child.document))
        step = _create(child) if live is None else _mend(child, live, uid)
        if step is not None:
            steps.append(step)
    leftovers = [
        live
        for live in observed.children
        if (live["kind"], name_of(live)) not in kept and label_of(live, names.LABEL_MODEL) not in spared
    ]
    return steps + [_delete(live, "no longer in the spec") for live in leftovers if controller_of(live) == uid]


def controller_of(live: Object) -> str | None:
    """Return the uid of an object's controller."""
    owners = live["metadata"].get("ownerReferences", [])
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def _create(child: Child) -> Create:
    document = drift.stamped(child.document)
    if child.initial_replicas is not None:
        document = {**document, "spec": {**document["spec"], "replicas": child.initial_replicas}}
    return Create(document, "does not exist")


def _mend(child: Child, live: Object, uid: str) -> Step | None:
    if "deletionTimestamp" in live["metadata"]:
        return None  # its end wakes us again
    if controller_of(live) not in (uid, None):
        return _delete(live, "belongs to an earlier MultiModel of this name")
    document = drift.stamped(child.document)
    where = drift.difference(document, live)
    if where is None:
        return None
    reason = "the spec or the operator changed" if drift.ANNOTATION_APPLIED in where else f"{where} was changed"
    return Update(document, reason, keep_replicas=_own_replicas(live) if child.initial_replicas is not None else None)


def _delete(live: Object, reason: str) -> Delete:
    metadata = live["metadata"]
    return Delete(kind_of(live), metadata["namespace"], metadata["name"], metadata["uid"], reason)


def _own_replicas(live: Object) -> int | None:
    """Return the replicas if the operator, having created the object, still owns the field."""
    owned = any(
        entry.get("manager") == FieldManager.OPERATOR and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in live["metadata"].get("managedFields", [])
    )
    replicas: int = live["spec"]["replicas"]
    return replicas if owned else None


def sentence(step: Step) -> str:
    """Return a step in words, for the log."""
    return f"{type(step).__name__.lower()} {step.kind.name} {step.name}: {step.reason}"
