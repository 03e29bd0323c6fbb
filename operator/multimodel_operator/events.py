"""Kubernetes Events on transitions: what changed between two statuses, said once; pure."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from multimodel_api import names
from multimodel_api.names import ConditionType
from multimodel_api.state import ModelState
from multimodel_api.status import Condition, ConditionReason, ModelStatus, MultiModelStatus
from multimodel_operator import objects, timeline
from multimodel_operator.objects import Object

MAX_NOTE = 1024

MODEL_LOADED = "ModelLoaded"
MODEL_UNLOADED = "ModelUnloaded"
ID_MOVED = "IdMoved"
POD_REPLACED = "PodReplaced"
"""Reasons of Events, beside those of failures and conditions."""


@dataclass(frozen=True)
class Notice:
    """Something worth an Event."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str


def notices(previous: MultiModelStatus, current: MultiModelStatus) -> list[Notice]:
    """Return what changed for the people who watch: what models did, and every new failure."""
    before = {model.name: model for model in previous.models}
    found = [notice for model in current.models for notice in _of_model(before.get(model.name), model)]
    return found + _of_conditions(previous, current)


def _of_model(before: ModelStatus | None, model: ModelStatus) -> list[Notice]:
    return [*_loads(before, model), *_states(before, model), *_troubles(before, model)]


def _loads(before: ModelStatus | None, model: ModelStatus) -> Iterator[Notice]:
    known = {(load.pod, load.started_at) for load in before.loads} if before else set()
    for load in reversed(model.loads):
        if (load.pod, load.started_at) not in known:
            words = f"model {model.name} ({model.id}): {load.pod} has loaded it in {timeline.sentence(load)}"
            yield Notice("Normal", MODEL_LOADED, words)


def _states(before: ModelStatus | None, model: ModelStatus) -> Iterator[Notice]:
    """Tell an unload, and another id; a model made with 0 replicas was not unloaded."""
    if before is None:
        return
    if model.state is ModelState.UNLOADED and before.state is not ModelState.UNLOADED:
        yield Notice("Normal", MODEL_UNLOADED, f"model {model.name} ({model.id}) is unloaded")
    if before.id != model.id:
        yield Notice("Normal", ID_MOVED, f"model {model.name} is served as {model.id}, no longer as {before.id}")


def _troubles(before: ModelStatus | None, model: ModelStatus) -> Iterator[Notice]:
    """Tell a new failure, and a server's end that a restart may cure."""
    end = model.last_end
    has_ended = end is not None and (before is None or before.last_end != end)
    if model.failure and _is_news(before, model, has_ended=has_ended):
        yield Notice("Warning", model.failure, f"model {model.name}: {model.message}")
    if end and has_ended and (end.reason, end.message) != (model.reason, model.message):
        yield Notice("Warning", end.reason, f"model {model.name}: a server ended: {end.message}")


def _is_news(before: ModelStatus | None, model: ModelStatus, *, has_ended: bool) -> bool:
    """Whether a failure is another than before; words that count restarts are not, the ends are told themselves."""
    if before is None or before.failure is not model.failure:
        return True
    return before.message != model.message and not has_ended


def _of_conditions(previous: MultiModelStatus, current: MultiModelStatus) -> list[Notice]:
    """Tell what is no model's own: the router's failure, a bad spec, a warning, a rollout that is blocked."""
    of_models = {f"model {model.name}: {model.message}" for model in current.models}
    said = {_said(condition) for condition in previous.conditions}
    return [
        Notice("Warning", condition.reason, condition.message)
        for condition in current.conditions
        if _is_warning(condition) and condition.message not in of_models and _said(condition) not in said
    ]


def _said(condition: Condition) -> tuple[str, str]:
    """Return what tells a condition from one that was told before: a blocked rollout's cause is its model's failure."""
    is_blocked = condition.reason == ConditionReason.ROLLOUT_BLOCKED
    return condition.reason, "" if is_blocked else condition.message


def _is_warning(condition: Condition) -> bool:
    match condition.type, condition.status:
        case (ConditionType.DEGRADED, "True") | (ConditionType.FITS, "False"):
            return True
        case (ConditionType.PROGRESSING, "False"):
            return condition.reason == ConditionReason.ROLLOUT_BLOCKED
        case _:
            return False


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
