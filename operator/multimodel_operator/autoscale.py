"""How many replicas a loaded model should have, from what its routers counted of late; pure.

Loading an unloaded model is never decided here: a request or a reload does that, by way of a router.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from multimodel_api.scaling import Scaling

DOWN_SECONDS = 90.0
"""Replicas go only when for so long fewer would have done."""


@dataclass(frozen=True)
class Load:
    """What the routers counted of one model; `at` is in seconds since the epoch."""

    at: float
    in_flight: int
    """Requests held and relayed."""
    complete: bool
    """Whether every router was heard; otherwise there may be more in flight."""


class ScaleReason(StrEnum):
    """Why replicas change: the reason of the Event."""

    LOAD_ROSE = "LoadRose"
    LOAD_FELL = "LoadFell"
    BELOW_MINIMUM = "BelowMinReplicas"
    IDLE = "Idle"


@dataclass(frozen=True)
class Change:
    """Another number of replicas, and why."""

    replicas: int
    reason: ScaleReason
    note: str


def decide(
    loads: Sequence[Load],
    replicas: int,
    scaling: Scaling,
    idle_since: float | None,
    now: float,
    *,
    down_seconds: float = DOWN_SECONDS,
) -> Change | None:
    """Return the change that a model needs, None when its replicas are as they should be.

    `loads` are the oldest first and end with the present one; `idle_since` is when the last request ended or the model
    got ready, None for a model that is not ready. An unloaded model, and one that is scaled by others, is left alone.
    """
    if replicas == 0 or scaling.autoscaler == "external":
        return None
    fewest = max(1, scaling.min_replicas)
    if replicas < fewest:
        return Change(fewest, ScaleReason.BELOW_MINIMUM, f"scaling.minReplicas is {fewest}")
    if not loads:
        return None
    return _unload(loads[-1], scaling, idle_since, now) or _follow(loads, replicas, scaling, now - down_seconds)


def keeps(loads: Sequence[Load], since: float) -> list[Load]:
    """Return the loads that later decisions need: those after `since`, and the last one before."""
    older = sum(load.at <= since for load in loads)
    return list(loads[max(0, older - 1) :])


def _unload(load: Load, scaling: Scaling, idle_since: float | None, now: float) -> Change | None:
    if scaling.idle_seconds is None or idle_since is None or load.in_flight or not load.complete:
        return None
    if now - idle_since < scaling.idle_seconds:
        return None
    return Change(0, ScaleReason.IDLE, f"no request for {scaling.idle_seconds} s, which is scaling.idleSeconds")


def _follow(loads: Sequence[Load], replicas: int, scaling: Scaling, since: float) -> Change | None:
    """Follow the load: up at once, down to what the busiest moment since then needed."""
    if scaling.max_replicas is None:
        return None
    load = loads[-1]
    wanted = _wanted(load, scaling)
    if wanted > replicas:
        words = f"{load.in_flight} requests in flight, {scaling.target_requests} for each replica are the target"
        return Change(wanted, ScaleReason.LOAD_ROSE, words)
    if not load.complete or loads[0].at > since:
        return None
    busiest = max((load for load in loads if load.at >= since), key=lambda load: load.in_flight)
    enough = _wanted(busiest, scaling)
    if enough >= replicas:
        return None
    words = f"at most {busiest.in_flight} requests in flight for {load.at - since:.0f} s"
    return Change(enough, ScaleReason.LOAD_FELL, words)


def _wanted(load: Load, scaling: Scaling) -> int:
    needed = ceil(load.in_flight / scaling.target_requests)
    return min(max(needed, scaling.min_replicas, 1), scaling.most_replicas)
