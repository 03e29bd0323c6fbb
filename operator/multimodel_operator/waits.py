"""Tells why models that are wanted do not load yet though nothing fails: others have what they need; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from multimodel_api.status import WaitReason
from multimodel_operator import residency
from multimodel_operator.residency import Tenant

MOST_NAMES = 8
"""Models that a message names; the rest is counted."""


@dataclass(frozen=True)
class Wait:
    """What a model waits for, and who has it."""

    reason: WaitReason
    message: str


def waits(tenants: Sequence[Tenant], max_loaded: int | None) -> Mapping[str, Wait]:
    """Return, by name, the models that wait for a place, or for a device that others of the MultiModel have."""
    places = (
        "waits for a place: spec.residency.maxLoaded is "
        f"{max_loaded}, and {_listed(tenant.name for tenant in tenants if tenant.holds_place)} came first"
    )
    found = {tenant.name: wait for tenant in residency.starving(tenants) if (wait := _for_device(tenant, tenants))}
    waiting = residency.waiting_for_place(tenants, max_loaded)
    return found | {tenant.name: Wait(WaitReason.WAITING_FOR_PLACE, places) for tenant in waiting}


def _for_device(starved: Tenant, tenants: Sequence[Tenant]) -> Wait | None:
    """Return None where nobody has what could be given back: then there is none for this MultiModel at all."""
    holders = [tenant for tenant in tenants if tenant.name != starved.name and tenant.devices & starved.starved_of]
    if not holders:
        return None
    devices = " and ".join(sorted(starved.starved_of))
    having = _listed(tenant.name for tenant in holders)
    message = f"waits for {devices}, until one of those is idle that have it: {having}"
    return Wait(WaitReason.WAITING_FOR_DEVICE, message)


def _listed(names: Iterable[str]) -> str:
    sorted_names = sorted(names)
    more = len(sorted_names) - MOST_NAMES
    return ", ".join(sorted_names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
