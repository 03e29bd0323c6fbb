"""What to do about an engine that is silent or dead: decisions without processes, clocks or queues."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """When an engine counts as wedged, and how often it may be rebooted."""

    heartbeat_seconds: float = 30.0
    load_silence_seconds: float = 600.0
    reboots: int = 5
    reboot_window_seconds: float = 600.0
    attempts: int = 2
    """Engines that one request may meet before it is blamed for their deaths."""


@dataclass(frozen=True, slots=True)
class EngineWatch:
    """What is known of an engine: times are seconds of one monotonic clock."""

    last_heard: float
    loading: bool
    has_work: bool


def is_wedged(watch: EngineWatch, now: float, limits: EngineLimits) -> bool:
    """Say whether the engine has been silent for too long; an idle engine never is."""
    silence = now - watch.last_heard
    if watch.loading:
        return silence > limits.load_silence_seconds
    return watch.has_work and silence > limits.heartbeat_seconds


def may_reboot(reboots: Sequence[float], now: float, limits: EngineLimits) -> bool:
    """Say whether one more reboot is within the budget, given the times of those before."""
    recent = [when for when in reboots if now - when < limits.reboot_window_seconds]
    return len(recent) < limits.reboots


def may_requeue(*, has_tokens: bool, attempts: int, limits: EngineLimits) -> bool:
    """Say whether a request of a dead engine may go to the next one: its client has seen nothing of the answer."""
    return not has_tokens and attempts < limits.attempts
