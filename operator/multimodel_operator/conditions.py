"""Turns what is known of models and router into the conditions of a MultiModel; pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.names import ConditionType
from multimodel_api.state import ModelState
from multimodel_api.status import Condition, ConditionReason, ModelStatus, MultiModelStatus, WaitReason
from multimodel_operator.fit import LOOKING, Fit
from multimodel_operator.rollout import Stage


@dataclass(frozen=True)
class RouterStatus:
    """What is known of the router; `withheld` says why none may run, `secrets` what its pods cannot start without."""

    replicas: int
    ready_replicas: int
    failure: LoadFailure | None
    withheld: str | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFindings:
    """A model's status, and what only conditions tell of it."""

    status: ModelStatus
    stage: Stage
    moves_to: str | None
    """The id that it waits to be served under."""
    fit: Fit | None
    """Whether it fits its device, where that is looked at."""

    @property
    def blocked(self) -> bool:
        """Whether its change to a new revision fails while an old one serves."""
        serves = self.status.state is ModelState.LOADED
        return serves and self.stage in (Stage.SURGING, Stage.BLOCKED) and self.status.failure is not None


@dataclass(frozen=True)
class Verdict:
    """A condition without its time and generation; `holds` is None where nobody knows."""

    type: ConditionType
    holds: bool | None
    reason: ConditionReason | FailureReason | WaitReason
    message: str


def verdicts(models: Sequence[ModelFindings], router: RouterStatus, failing_calls: Mapping[str, str]) -> list[Verdict]:
    """Return every condition of a MultiModel whose spec is understood.

    `failing_calls` says by model since when every call has failed, as routers tell it.
    """
    shown = [model.status for model in models]
    models_ready = _models_ready(shown)
    router_ready = _router_ready(router)
    broken = next((verdict for verdict in (models_ready, router_ready) if not verdict.holds), None)
    ready = (
        Verdict(ConditionType.READY, False, broken.reason, broken.message)
        if broken
        else Verdict(ConditionType.READY, True, ConditionReason.ALL_READY, "the endpoint serves every wanted model")
    )
    running = [_progressing(models, router), _degraded(models, router), _calls_failing(failing_calls)]
    said = [ready, models_ready, router_ready, *running]
    fits = {model.status.name: model.fit for model in models if model.fit}
    return [*said, _fits(fits)] if fits and LOOKING not in fits.values() else said


def invalid(problem: str) -> list[Verdict]:
    """Return what is said of a spec that is not understood."""
    reason = ConditionReason.INVALID_SPEC
    return [
        Verdict(ConditionType.READY, False, reason, problem),
        Verdict(ConditionType.DEGRADED, True, reason, problem),
    ]


def conditions(
    said: Sequence[Verdict],
    previous: MultiModelStatus,
    generation: int,
    now: str,
    unsettled: Collection[ConditionType] = (),
) -> list[Condition]:
    """Return the conditions; one keeps its time of transition while its status stays the same.

    Of the `unsettled` ones stands what was said before.
    """
    since = {(old.type, old.status): old.last_transition_time for old in previous.conditions}

    def condition(verdict: Verdict) -> Condition:
        status = _status(verdict.holds)
        return Condition(
            type=verdict.type,
            status=status,
            reason=verdict.reason,
            message=verdict.message,
            last_transition_time=since.get((verdict.type, status), now),
            observed_generation=generation,
        )

    return [*(condition(verdict) for verdict in said), *(old for old in previous.conditions if old.type in unsettled)]


def _status(holds: bool | None) -> Literal["True", "False", "Unknown"]:
    if holds is None:
        return "Unknown"
    return "True" if holds else "False"


def _models_ready(models: Sequence[ModelStatus]) -> Verdict:
    """A model that nobody wants now is fine; one that serves is ready even if one of its replicas fails."""
    for model in models:
        if model.failure and model.state is not ModelState.LOADED:
            return Verdict(ConditionType.MODELS_READY, False, model.failure, f"model {model.name}: {model.message}")
    waiting = [model for model in models if model.state not in (ModelState.LOADED, ModelState.UNLOADED)]
    if waiting:
        causes = (f"; model {model.name}: {model.message}" for model in waiting if model.message)
        words = f"waiting for {', '.join(model.name for model in waiting)}{''.join(causes)}"
        return Verdict(ConditionType.MODELS_READY, False, ConditionReason.MODELS_LOADING, words)
    return Verdict(ConditionType.MODELS_READY, True, ConditionReason.ALL_READY, "every wanted model is loaded")


def _router_ready(router: RouterStatus) -> Verdict:
    if router.withheld:
        return Verdict(ConditionType.ROUTER_READY, False, ConditionReason.API_KEYS_MISSING, router.withheld)
    counted = f"{router.ready_replicas} of {router.replicas} router pods are ready"
    if router.ready_replicas:
        return Verdict(ConditionType.ROUTER_READY, True, ConditionReason.ROUTER_READY, counted)
    if router.failure:
        return Verdict(ConditionType.ROUTER_READY, False, router.failure.reason, f"router: {router.failure.message}")
    needed = "".join(f"; they need the Secret {secret}" for secret in router.secrets)
    return Verdict(ConditionType.ROUTER_READY, False, ConditionReason.ROUTER_STARTING, counted + needed)


def _progressing(models: Sequence[ModelFindings], router: RouterStatus) -> Verdict:
    """Whether anything is on its way that has not failed; its time of transition says for how long."""
    for model in models:
        if model.blocked:
            words = f"model {model.status.name}: the earlier revision serves on: {model.status.message}"
            return Verdict(ConditionType.PROGRESSING, False, ConditionReason.ROLLOUT_BLOCKED, words)
    under_way = [step for model in models for step in _under_way(model)]
    if under_way:
        words = "; ".join(f"model {name}: {what}" for _, name, what in under_way)
        return Verdict(ConditionType.PROGRESSING, True, under_way[0][0], words)
    if not router.withheld and router.ready_replicas < router.replicas:
        words = f"{router.ready_replicas} of {router.replicas} router pods are ready"
        return Verdict(ConditionType.PROGRESSING, True, ConditionReason.ROUTER_STARTING, words)
    return Verdict(ConditionType.PROGRESSING, False, ConditionReason.SETTLED, "nothing is under way")


def _under_way(model: ModelFindings) -> list[tuple[ConditionReason | WaitReason, str, str]]:
    shown = model.status
    if isinstance(shown.reason, WaitReason):
        return [(shown.reason, shown.name, shown.message or "")]
    if model.stage is Stage.DRAINING:
        words = "the old pod leaves before the new one comes, for want of room for both"
        return [(ConditionReason.ROLLING_OUT, shown.name, words)]
    if model.stage is not Stage.DONE:
        return [(ConditionReason.ROLLING_OUT, shown.name, "a new pod starts beside the old one")]
    if model.moves_to:
        words = f"served as {shown.id} now, as {model.moves_to} when all that changes is loaded"
        return [(ConditionReason.ALIAS_MOVING, shown.name, words)]
    if shown.failure is None and shown.ready_replicas < shown.replicas:
        words = f"{shown.ready_replicas} of {shown.replicas} replicas are loaded"
        return [(ConditionReason.MODELS_LOADING, shown.name, words)]
    return []


def _degraded(models: Sequence[ModelFindings], router: RouterStatus) -> Verdict:
    """Whether anything fails, serving or not."""
    for model in (model.status for model in models):
        if model.failure:
            return Verdict(ConditionType.DEGRADED, True, model.failure, f"model {model.name}: {model.message}")
    if router.failure:
        return Verdict(ConditionType.DEGRADED, True, router.failure.reason, f"router: {router.failure.message}")
    return Verdict(ConditionType.DEGRADED, False, ConditionReason.NO_FAILURE, "nothing fails")


def _calls_failing(since: Mapping[str, str]) -> Verdict:
    if not since:
        return Verdict(ConditionType.CALLS_FAILING, False, ConditionReason.NO_FAILURE, "no model fails every call")
    words = "; ".join(f"model {name}: every call has failed since {time}" for name, time in since.items())
    return Verdict(ConditionType.CALLS_FAILING, True, ConditionReason.EVERY_CALL_FAILS, words)


def _fits(fits: Mapping[str, Fit]) -> Verdict:
    """Whether every model fits its device: a warning, which keeps nothing from being tried."""
    for verdict, reason in ((False, ConditionReason.TOO_LARGE), (None, ConditionReason.NOT_KNOWN)):
        found = [f"model {name}: {fit.message}" for name, fit in fits.items() if fit.holds is verdict]
        if found:
            message = "; ".join(found)
            return Verdict(ConditionType.FITS, verdict, reason, message)
    return Verdict(ConditionType.FITS, True, ConditionReason.FITS, "every model fits its device")
