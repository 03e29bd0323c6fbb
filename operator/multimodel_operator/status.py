"""Turns what is observed into a MultiModel's status; pure: the time is an argument."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from multimodel_api import names, pod_failures, pod_status
from multimodel_api.failures import MAX_MESSAGE, FailureReason, LoadFailure
from multimodel_api.manifest import LOADABLE_KINDS, Model, MultiModelSpec
from multimodel_api.names import ConditionType
from multimodel_api.served import Identity, identity_of
from multimodel_api.state import ModelState, model_state
from multimodel_api.status import End, ModelStatus, MultiModelStatus
from multimodel_api.timestamps import moment
from multimodel_operator import conditions, objects, rollout, tenancy, timeline
from multimodel_operator.conditions import ModelFindings, RouterStatus
from multimodel_operator.fit import LOOKING, Fit
from multimodel_operator.objects import Key, Object, Observed, label_of
from multimodel_operator.rollout import Stage
from multimodel_operator.router_resources import mounted_secrets, router_url
from multimodel_operator.serving import Serving
from multimodel_operator.summary import summary
from multimodel_operator.timeline import Reports
from multimodel_operator.waits import Wait, waits

Refusals = Mapping[str, str]
"""What the API server said to objects that it did not accept, by their name."""


_ROUTERS_RECORDS = ("last_command", "calls_failing_since")
"""The fields of a model's status that routers write."""


@dataclass(frozen=True)
class Findings:
    """What a pass has found out beside what is observed.

    `reports` are what servers told of their loads, `fits` whether models fit their devices where that is looked at, and
    `router_withheld` is whether no router may run, for want of API keys.
    """

    serving: Serving
    refusals: Refusals = field(default_factory=dict)
    reports: Reports = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    router_withheld: bool = False


def current_status(
    observed: Observed, spec: MultiModelSpec, findings: Findings, previous: MultiModelStatus, now: str
) -> MultiModelStatus:
    """Return the status; `now` is an RFC 3339 time. What has not changed keeps its time of transition."""
    metadata = observed.multimodel["metadata"]
    key = Key(metadata["namespace"], metadata["name"])
    before = {model.name: model for model in previous.models}
    waiting = waits(tenancy.tenants(observed, moment(now).timestamp()), spec.residency.max_loaded)
    models = [
        _model_findings(observed, key, model, findings, waiting.get(model.name), before.get(model.name), now)
        for model in spec.models
    ]
    shown = [model.status for model in models]
    loaded = sum(model.state is ModelState.LOADED for model in shown)
    router = _router_status(observed, key, spec, findings, now)
    said = conditions.verdicts(models, router, _failing_calls(observed.multimodel, shown))
    unsettled = [ConditionType.FITS] if LOOKING in findings.fits.values() else []
    return MultiModelStatus(
        observed_generation=metadata["generation"],
        conditions=conditions.conditions(said, previous, metadata["generation"], now, unsettled),
        default_model=findings.serving.default,
        url=router_url(key, spec.router),
        loaded=f"{loaded}/{len(models)}",
        summary=summary(shown),
        models=[*shown, *findings.serving.retiring],
    )


def invalid_status(multimodel: Object, problem: str, previous: MultiModelStatus, now: str) -> MultiModelStatus:
    """Return the status of a MultiModel whose spec this operator does not understand; its children stay as they are."""
    generation = multimodel["metadata"]["generation"]
    said = conditions.conditions(conditions.invalid(problem), previous, generation, now)
    return previous.model_copy(update={"observed_generation": generation, "conditions": said})


def previous_status(multimodel: Object) -> MultiModelStatus:
    """Return the operator's part of the status that is written, which is all of it but what routers record."""
    written = _written_status(multimodel)
    models = [model.model_copy(update=dict.fromkeys(_ROUTERS_RECORDS)) for model in written.models]
    return written.model_copy(update={"models": models})


def forgotten_records(multimodel: Object, current: MultiModelStatus) -> list[str]:
    """Return the models that are in no list any more and of which a router's record is left."""
    listed = {model.name for model in current.models}
    return [
        model.name
        for model in _written_status(multimodel).models
        if model.name not in listed and any(getattr(model, record) for record in _ROUTERS_RECORDS)
    ]


def pods_of(observed: Observed, model: str) -> list[Object]:
    """Return the pods of a model."""
    return [pod for pod in observed.pods if label_of(pod, names.LABEL_MODEL) == model]


def _failing_calls(multimodel: Object, shown: Sequence[ModelStatus]) -> dict[str, str]:
    """Return since when every call of a model fails, for those that are wanted: nobody calls an unloaded one."""
    wanted = {model.name for model in shown if model.replicas}
    written = _written_status(multimodel).models
    return {m.name: m.calls_failing_since for m in written if m.calls_failing_since and m.name in wanted}


def _written_status(multimodel: Object) -> MultiModelStatus:
    """Return the status that is written; an empty one where another version wrote something else."""
    try:
        return MultiModelStatus.model_validate(multimodel.get("status", {}))
    except ValidationError:
        return MultiModelStatus()


def _model_findings(
    observed: Observed,
    key: Key,
    model: Model,
    findings: Findings,
    wait: Wait | None,
    before: ModelStatus | None,
    now: str,
) -> ModelFindings:
    name = names.model_object_name(key.name, model.name)
    deployment = observed.child(objects.DEPLOYMENT, name) if model.loadable else None
    pods = pods_of(observed, model.name)
    stage = Stage.DONE if deployment is None else rollout.stage(deployment, pods, now)
    failure = (
        _unsupported(model)
        or _refusal(findings.refusals, name)
        or _failure(deployment, pods, observed.pods, stage, now)
    )
    identity = findings.serving.identities[model.name]
    fit = findings.fits.get(model.name)
    if wait and failure and failure.reason is FailureReason.UNSCHEDULABLE:
        failure = None  # what it lacks is what it waits for
    why = failure or wait
    shown = _model_status(model, identity, deployment, failure, before, now).model_copy(
        update={
            "reason": why and why.reason,
            "message": why and why.message[:MAX_MESSAGE],
            "restarts": sum(c.get("restartCount", 0) for pod in pods for c in pod_status.containers(pod)),
            "last_end": _last_end(pods, before),
            "loads": timeline.loads(before.loads if before else [], pods, findings.reports),
            "memory": before.memory if before and fit is LOOKING else fit and fit.memory,
        }
    )
    wanted = identity_of(model)
    return ModelFindings(shown, stage, moves_to=wanted.id if wanted != identity else None, fit=fit)


def _model_status(
    model: Model,
    identity: Identity,
    deployment: Object | None,
    failure: LoadFailure | None,
    before: ModelStatus | None,
    now: str,
) -> ModelStatus:
    desired: int | None = None if deployment is None else deployment["spec"].get("replicas", 1)
    ready = 0 if deployment is None else deployment.get("status", {}).get("readyReplicas", 0)
    state = model_state(desired_replicas=desired, ready_replicas=ready, failure=failure)
    return ModelStatus(
        name=model.name,
        id=identity.id,
        canonical_id=identity.canonical_id,
        state=state,
        since=before.since if before and before.state is state else now,
        replicas=desired or 0,
        ready_replicas=ready,
    )


def _failure(
    deployment: Object | None, pods: Sequence[Object], neighbours: Sequence[Object], stage: Stage, now: str
) -> LoadFailure | None:
    """Return why a model that is wanted does not come up; a new pod whose room is being made fails in nothing."""
    if deployment is None or not deployment["spec"].get("replicas", 1):
        return None
    failure = pod_failures.pod_failure(pods, neighbours, now) or _without_pods(deployment)
    is_awaited = stage is Stage.DRAINING and failure and failure.reason is FailureReason.UNSCHEDULABLE
    return None if is_awaited else failure


def _without_pods(deployment: Object) -> LoadFailure | None:
    """Return why the API server lets a Deployment make no pods."""
    found = [c for c in deployment.get("status", {}).get("conditions", []) if c["type"] == "ReplicaFailure"]
    if not found or found[0]["status"] != "True":
        return None
    words = found[0].get("message", "")
    over_quota = "exceeded quota" in words
    reason = FailureReason.QUOTA_EXCEEDED if over_quota else FailureReason.BAD_CONFIGURATION
    return LoadFailure(reason=reason, message=words)


def _last_end(pods: Sequence[Object], before: ModelStatus | None) -> End | None:
    """Return how a server last ended; pods that are gone are remembered."""
    known = before.last_end if before else None
    found = pod_failures.last_end(pods)
    if found is None or (known and moment(known.at) >= moment(found[1])):
        return known
    why, at = found
    return End(reason=why.reason, message=why.message[:MAX_MESSAGE], at=at)


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


def _router_status(observed: Observed, key: Key, spec: MultiModelSpec, findings: Findings, now: str) -> RouterStatus:
    name = names.router_name(key.name)
    deployment = observed.child(objects.DEPLOYMENT, name)
    pods = [pod for pod in observed.pods if label_of(pod, names.LABEL_COMPONENT) == names.Component.ROUTER]
    return RouterStatus(
        replicas=0 if deployment is None else deployment["spec"].get("replicas", 1),
        ready_replicas=0 if deployment is None else deployment.get("status", {}).get("readyReplicas", 0),
        failure=_refusal(findings.refusals, name) or pod_failures.pod_failure(pods, now=now),
        withheld=_how_to_get_keys(key) if findings.router_withheld else None,
        secrets=tuple(mounted_secrets(spec.router).values()),
    )


def _how_to_get_keys(key: Key) -> str:
    secret = f"{key.name}-keys"
    patch = f'{{"spec": {{"router": {{"apiKeys": {{"secretName": "{secret}"}}}}}}}}'
    return (
        "no router runs, as spec.router.apiKeys is not set. To make a key and to name its Secret: "
        f"`multimodel keys new KEY --secret {secret} | kubectl apply -n {key.namespace} --server-side "
        f"--field-manager=KEY -f -` and `kubectl patch mm {key.name} -n {key.namespace} --type=merge -p '{patch}'`. "
        "To let everybody in instead, install the chart with requireApiKeys=false."
    )
