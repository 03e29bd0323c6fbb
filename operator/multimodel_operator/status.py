"""Turns what is observed into a MultiModel's status; pure: the time is an argument."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import ValidationError

from multimodel_api import names
from multimodel_api.failures import MAX_MESSAGE, FailureReason, LoadFailure
from multimodel_api.manifest import LOADABLE_KINDS, Model, MultiModelSpec
from multimodel_api.names import ConditionType
from multimodel_api.pod_failures import pod_failure
from multimodel_api.state import ModelState, model_state
from multimodel_api.status import Condition, ModelStatus, MultiModelStatus
from multimodel_operator import objects
from multimodel_operator.objects import Key, Object, Observed, label_of
from multimodel_operator.resources import router_url


class ConditionReason(StrEnum):
    """Reasons of conditions beside those of `FailureReason`."""

    ALL_READY = "AllReady"
    MODELS_LOADING = "ModelsLoading"
    ROUTER_STARTING = "RouterStarting"
    ROUTER_READY = "RouterReady"
    NO_FAILURE = "NoFailure"
    INVALID_SPEC = "InvalidSpec"


Refusals = Mapping[str, str]
"""What the API server said to objects that it did not accept, by their name."""


@dataclass(frozen=True)
class RouterStatus:
    """What is known of the router."""

    replicas: int
    ready_replicas: int
    failure: LoadFailure | None


@dataclass(frozen=True)
class Verdict:
    """A condition without its time and generation."""

    type: ConditionType
    holds: bool
    reason: str
    message: str


def current_status(
    observed: Observed, spec: MultiModelSpec, refusals: Refusals, previous: MultiModelStatus, now: str
) -> MultiModelStatus:
    """Return the status; a condition keeps its time of transition while its status stays the same.

    `now` is an RFC 3339 time.
    """
    metadata = observed.multimodel["metadata"]
    key = Key(metadata["namespace"], metadata["name"])
    models = [_model_status(observed, key, model, refusals) for model in spec.models]
    loaded = sum(model.state is ModelState.LOADED for model in models)
    verdicts = _verdicts(models, _router_status(observed, key, refusals))
    return MultiModelStatus(
        observed_generation=metadata["generation"],
        conditions=_conditions(verdicts, previous, metadata["generation"], now),
        default_model=spec.default.api_id,
        url=router_url(key),
        loaded=f"{loaded}/{len(models)}",
        models=models,
    )


def invalid_status(multimodel: Object, problem: str, previous: MultiModelStatus, now: str) -> MultiModelStatus:
    """Return the status of a MultiModel whose spec this operator does not understand; its children stay as they are."""
    generation = multimodel["metadata"]["generation"]
    reason = ConditionReason.INVALID_SPEC
    verdicts = [
        Verdict(ConditionType.READY, False, reason, problem),
        Verdict(ConditionType.DEGRADED, True, reason, problem),
    ]
    return previous.model_copy(
        update={
            "observed_generation": generation,
            "conditions": _conditions(verdicts, previous, generation, now),
        }
    )


def previous_status(multimodel: Object) -> MultiModelStatus:
    """Return the status that is written; an empty one where another version wrote something else."""
    try:
        return MultiModelStatus.model_validate(multimodel.get("status", {}))
    except ValidationError:
        return MultiModelStatus()


def _model_status(observed: Observed, key: Key, model: Model, refusals: Refusals) -> ModelStatus:
    name = names.model_object_name(key.name, model.name)
    deployment = observed.child(objects.DEPLOYMENT, name) if model.loadable else None
    desired: int | None = None if deployment is None else deployment["spec"].get("replicas", 1)
    ready = 0 if deployment is None else deployment.get("status", {}).get("readyReplicas", 0)
    pods = [pod for pod in observed.pods if label_of(pod, names.LABEL_MODEL) == model.name]
    failure = _unsupported(model) or _refusal(refusals, name) or (pod_failure(pods) if desired else None)
    return ModelStatus(
        name=model.name,
        id=model.api_id,
        canonical_id=model.canonical_id,
        state=model_state(desired_replicas=desired, ready_replicas=ready, failure=failure),
        reason=failure and failure.reason,
        message=failure and failure.message[:MAX_MESSAGE],
        replicas=desired or 0,
        ready_replicas=ready,
    )


def _unsupported(model: Model) -> LoadFailure | None:
    if model.loadable:
        return None
    return LoadFailure(
        reason=FailureReason.UNSUPPORTED_SOURCE,
        message=f"a source of kind '{model.kind}' cannot be loaded; use one of the kinds: {', '.join(LOADABLE_KINDS)}",
    )


def _refusal(refusals: Refusals, name: str) -> LoadFailure | None:
    if name not in refusals:
        return None
    return LoadFailure(reason=FailureReason.BAD_CONFIGURATION, message=refusals[name])


def _router_status(observed: Observed, key: Key, refusals: Refusals) -> RouterStatus:
    name = names.router_name(key.name)
    deployment = observed.child(objects.DEPLOYMENT, name)
    pods = [pod for pod in observed.pods if label_of(pod, names.LABEL_COMPONENT) == names.Component.ROUTER]
    return RouterStatus(
        replicas=0 if deployment is None else deployment["spec"].get("replicas", 1),
        ready_replicas=0 if deployment is None else deployment.get("status", {}).get("readyReplicas", 0),
        failure=_refusal(refusals, name) or pod_failure(pods),
    )


def _verdicts(models: Sequence[ModelStatus], router: RouterStatus) -> list[Verdict]:
    models_ready = _models_ready(models)
    router_ready = _router_ready(router)
    broken = next((verdict for verdict in (models_ready, router_ready) if not verdict.holds), None)
    ready = (
        Verdict(ConditionType.READY, False, broken.reason, broken.message)
        if broken
        else Verdict(ConditionType.READY, True, ConditionReason.ALL_READY, "the endpoint serves every wanted model")
    )
    return [ready, models_ready, router_ready, _degraded(models, router)]


def _models_ready(models: Sequence[ModelStatus]) -> Verdict:
    """A model that nobody wants now is fine; one that serves is ready even if one of its replicas fails."""
    for model in models:
        if model.reason and model.state is not ModelState.LOADED:
            return Verdict(ConditionType.MODELS_READY, False, model.reason, f"model {model.name}: {model.message}")
    waiting = [model.name for model in models if model.state not in (ModelState.LOADED, ModelState.UNLOADED)]
    if waiting:
        words = f"waiting for {', '.join(waiting)}"
        return Verdict(ConditionType.MODELS_READY, False, ConditionReason.MODELS_LOADING, words)
    return Verdict(ConditionType.MODELS_READY, True, ConditionReason.ALL_READY, "every wanted model is loaded")


def _router_ready(router: RouterStatus) -> Verdict:
    counted = f"{router.ready_replicas} of {router.replicas} router pods are ready"
    if router.ready_replicas:
        return Verdict(ConditionType.ROUTER_READY, True, ConditionReason.ROUTER_READY, counted)
    if router.failure:
        return Verdict(ConditionType.ROUTER_READY, False, router.failure.reason, f"router: {router.failure.message}")
    return Verdict(ConditionType.ROUTER_READY, False, ConditionReason.ROUTER_STARTING, counted)


def _degraded(models: Sequence[ModelStatus], router: RouterStatus) -> Verdict:
    """Whether anything fails, serving or not."""
    for model in models:
        if model.reason:
            return Verdict(ConditionType.DEGRADED, True, model.reason, f"model {model.name}: {model.message}")
    if router.failure:
        return Verdict(ConditionType.DEGRADED, True, router.failure.reason, f"router: {router.failure.message}")
    return Verdict(ConditionType.DEGRADED, False, ConditionReason.NO_FAILURE, "nothing fails")


def _conditions(verdicts: Sequence[Verdict], previous: MultiModelStatus, generation: int, now: str) -> list[Condition]:
    since = {(old.type, old.status): old.last_transition_time for old in previous.conditions}

    def condition(verdict: Verdict) -> Condition:
        status: Literal["True", "False"] = "True" if verdict.holds else "False"
        return Condition(
            type=verdict.type,
            status=status,
            reason=verdict.reason,
            message=verdict.message,
            last_transition_time=since.get((verdict.type, status), now),
            observed_generation=generation,
        )

    return [condition(verdict) for verdict in verdicts]
