"""Which models hold the places that there are: who is let in, who makes room, who waits for a turn; pure.

Under `spec.residency.maxLoaded` a model's pods start gated, and a model that has no place yet waits for one. Places are
given in the order of asking. An idle model makes room at once, the one used longest ago first. Where all are busy, a
model makes room when another has waited for, and it has itself served for, a whole turn: so whoever alternates between
models causes one swap a turn and not one a request, and nobody waits for more than the turns of those before him.
An idle model is scaled to 0. A busy one keeps its replicas, and its pods end: they finish what they have begun, while
those that take their place are gated, and wait behind the others. (Scaled to 0, it would be woken by its requests
before anybody has seen it.)

Where the scheduler finds no device for a model, an idle one that has such a device makes room too. There are no turns
then: without gates, whoever ended would compete for the device again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf


@dataclass(frozen=True)
class Patience:
    """Seconds: a model without a request for `quiet` is idle; a busy one serves for a `turn` while others wait."""

    quiet: float = 3.0
    turn: float = 30.0


@dataclass(frozen=True)
class Tenant:
    """A model with its pods; times are in seconds since the epoch."""

    name: str
    replicas: int = 0
    """Wanted replicas."""
    leaving: bool = False
    """Whether a pod of it is on its way out, and still holds a place."""
    gated: tuple[str, ...] = ()
    """Pods that wait to be let in."""
    free: tuple[str, ...] = ()
    """Pods that may run, and are to stay."""
    asked_at: float = 0.0
    """Since when its oldest pod without a place or a device waits."""
    ready_since: float | None = None
    starved_of: frozenset[str] = frozenset()
    """The devices that the scheduler finds too few of, for a model that is not ready."""
    devices: frozenset[str] = frozenset()
    """The devices that its pods have."""
    failing: bool = False
    in_flight: int = 0
    last_used: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether it holds a place, and is to stay."""
        return bool(self.free)

    @property
    def holds_place(self) -> bool:
        """Whether a pod of it runs, or may run."""
        return self.settled or self.leaving

    @property
    def waits_for_place(self) -> bool:
        """Whether it is wanted, and has not been let in."""
        return self.replicas > 0 and bool(self.gated) and not self.settled


@dataclass(frozen=True)
class Admit:
    """Let a model's gated pods run."""

    model: str
    pods: tuple[str, ...]


@dataclass(frozen=True)
class Unload:
    """Scale an idle model to 0, and why."""

    model: str
    note: str


@dataclass(frozen=True)
class Yield:
    """End the pods of a busy model, which then waits for its next turn, and why."""

    model: str
    pods: tuple[str, ...]
    note: str


Eviction = Unload | Yield


def admissions(tenants: Sequence[Tenant], max_loaded: int | None) -> list[Admit]:
    """Return whom to let in: further pods of models that have a place, and models as long as there is room."""
    admitted, _ = _queue(tenants, max_loaded)
    return [Admit(tenant.name, tenant.gated) for tenant in (*_growing(tenants), *admitted)]


def blocked(tenants: Sequence[Tenant], max_loaded: int | None) -> list[Tenant]:
    """Return who needs room that another has to make: models that wait for a place or for a device."""
    return waiting_for_place(tenants, max_loaded) + starving(tenants)


def waiting_for_place(tenants: Sequence[Tenant], max_loaded: int | None) -> list[Tenant]:
    """Return the models for which there is no place now, in the order of asking."""
    _, waiting = _queue(tenants, max_loaded)
    return waiting


def starving(tenants: Iterable[Tenant]) -> list[Tenant]:
    """Return the models for which the scheduler finds no device, in the order of asking."""
    return sorted((tenant for tenant in tenants if tenant.starved_of and tenant.replicas), key=_by_asking)


def overfull(tenants: Sequence[Tenant], max_loaded: int | None) -> int:
    """Return how many models hold a place beyond those that there are: `maxLoaded` may have been lowered."""
    return 0 if max_loaded is None else max(0, sum(tenant.holds_place for tenant in tenants) - max_loaded)


def evictions(
    tenants: Sequence[Tenant], max_loaded: int | None, now: float, patience: Patience = Patience()
) -> list[Eviction]:
    """Return who makes room; to be asked only when every router was heard."""
    staying = [tenant for tenant in tenants if tenant.settled]
    leaving = [tenant for tenant in tenants if tenant.leaving and not tenant.settled]
    waiting = waiting_for_place(tenants, max_loaded)
    claims: list[Tenant | None] = [*([None] * overfull(tenants, max_loaded)), *waiting]
    found = list(_victims(claims[len(leaving) :], staying, now, patience))
    for starved in starving(tenants):
        if not any(tenant.devices & starved.starved_of for tenant in leaving):
            rest = [t for t in staying if t.devices & starved.starved_of and t.name not in {e.model for e in found}]
            found += _victims([starved], rest, now, replace(patience, turn=inf))
    return found


def _growing(tenants: Iterable[Tenant]) -> list[Tenant]:
    return [tenant for tenant in tenants if tenant.settled and tenant.gated]


def _queue(tenants: Sequence[Tenant], max_loaded: int | None) -> tuple[list[Tenant], list[Tenant]]:
    """Return the models that wait for a place in two parts: those that get one now, and the rest.

    One whose former pod is still on its way out has that pod's place, unless another has asked before it.
    """
    newcomers = sorted((tenant for tenant in tenants if tenant.waits_for_place), key=_by_asking)
    if max_loaded is None:
        return newcomers, []
    room = max_loaded - sum(tenant.holds_place for tenant in tenants)
    for number, newcomer in enumerate(newcomers):
        room -= not newcomer.leaving
        if room < 0:
            return newcomers[:number], newcomers[number:]
    return newcomers, []


def _by_asking(tenant: Tenant) -> tuple[float, str]:
    return tenant.asked_at, tenant.name


def _victims(
    claims: Sequence[Tenant | None], staying: Sequence[Tenant], now: float, patience: Patience
) -> Iterator[Eviction]:
    """Choose one for each claim; a claim of None is that of nobody in particular, and takes idle models alone."""
    candidates = sorted(staying, key=lambda tenant: tenant.last_used)
    for claim in claims:
        whom = f"model {claim.name} needs its place" if claim else "more models are loaded than residency.maxLoaded"
        victim = next((tenant for tenant in candidates if _idle(tenant, now, patience)), None)
        if victim is not None:
            yield Unload(victim.name, f"idle, and {whom}")
        elif claim and (victim := _longest_served(claim, candidates, now - patience.turn)):
            yield Yield(victim.name, victim.free, f"its turn of {patience.turn:.0f} s is over, and {whom}")
        if victim is not None:
            candidates.remove(victim)


def _idle(tenant: Tenant, now: float, patience: Patience) -> bool:
    if tenant.in_flight:
        return False
    if tenant.ready_since is None:
        return tenant.failing
    return now - max(tenant.last_used, tenant.ready_since) >= patience.quiet


def _longest_served(claim: Tenant, candidates: Iterable[Tenant], since: float) -> Tenant | None:
    """Return who has served the longest, if both its turn and the wait for it began before `since`."""
    served = [tenant for tenant in candidates if tenant.ready_since is not None and tenant.ready_since <= since]
    if claim.asked_at > since or not served:
        return None
    return min(served, key=lambda tenant: tenant.ready_since or 0.0)
