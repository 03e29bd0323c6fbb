"""Kubernetes Events on transitions: what changed between two statuses, said once; pure."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from multimodel_api import names
from multimodel_api.names import ConditionType
from multimodel_api.state import ModelState
from multimodel_api.status import ModelStatus, MultiModelStatus
from multimodel_operator import objects
from multimodel_operator.objects import Object

MAX_NOTE = 1024
_TRANSITIONS = {ModelState.LOADED: "Loaded", ModelState.UNLOADED: "Unloaded"}


@dataclass(frozen=True)
class Notice:
    """Something worth an Event."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str


def notices(previous: MultiModelStatus, current: MultiModelStatus) -> list[Notice]:
    """Return what changed for the people who watch: models that came or went, and every new failure."""
    before = {model.name: model for model in previous.models}
    found = [notice for model in current.models for notice in _of_model(before.get(model.name), model)]
    return found + _of_resource(previous, current)


def _of_model(before: ModelStatus | None, model: ModelStatus) -> list[Notice]:
    changed: list[Notice] = []
    known = before is not None or model.state is ModelState.LOADED  # a model made with 0 replicas was not unloaded
    if known and model.state in _TRANSITIONS and (before is None or before.state is not model.state):
        word = _TRANSITIONS[model.state]
        changed.append(Notice("Normal", word, f"model {model.name} ({model.id}) is {model.state}"))
    if model.reason and (before is None or (before.reason, before.message) != (model.reason, model.message)):
        changed.append(Notice("Warning", model.reason, f"model {model.name}: {model.message}"))
    return changed


def _of_resource(previous: MultiModelStatus, current: MultiModelStatus) -> list[Notice]:
    """A failure that is no model's: the router's, or a spec that is not understood."""
    of_models = {f"model {model.name}: {model.message}" for model in current.models}
    said = {(condition.reason, condition.message) for condition in previous.conditions}
    return [
        Notice("Warning", condition.reason, condition.message)
        for condition in current.conditions
        if condition.type is ConditionType.DEGRADED
        and condition.status == "True"
        and condition.message not in of_models
        and (condition.reason, condition.message) not in said
    ]


def event(notice: Notice, multimodel: Object, now: str) -> dict[str, Any]:
    """Return the Event; the same notice on the same MultiModel has the same name, so that a repetition is counted.

    `now` is an RFC 3339 time with microseconds.
    """
    metadata = multimodel["metadata"]
    identity = "\n".join([metadata["uid"], notice.reason, notice.note])
    return {
        "apiVersion": objects.EVENT.api_version,
        "kind": objects.EVENT.name,
        "metadata": {
            "name": names.bounded_name(f"{metadata['name']}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"),
            "namespace": metadata["namespace"],
        },
        "eventTime": now,
        "type": notice.type,
        "reason": notice.reason,
        "note": notice.note[:MAX_NOTE],
        "action": "Reconcile",
        "reportingController": names.MANAGED_BY,
        "reportingInstance": names.MANAGED_BY,
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }
