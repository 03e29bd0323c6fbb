"""Leader election with a Lease: of several operators one writes, and another takes over when it ends or falls silent.

Times are measured by each operator's own clock alone: a Lease is over when nobody has renewed it for as long as it
says, seen from here. A leader stops well before others may think so.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from multimodel_operator.api_server import ApiServer, path_of
from multimodel_operator.errors import OperatorError
from multimodel_operator.objects import Key, Kind, Object

logger = logging.getLogger(__name__)

LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
RELEASE_SECONDS = 3.0
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Others count the time while this machine sleeps; the monotonic clock, by which asyncio waits, stands still then."""


@dataclass(frozen=True)
class Timing:
    """Seconds: how long a Lease lasts, when a leader that cannot renew gives up, and between two tries."""

    lease: int

    @property
    def renew(self) -> float:
        """A leader that could not renew for so long stops."""
        return self.lease * 2 / 3

    @property
    def retry(self) -> float:
        """Between two tries to get or to keep the Lease."""
        return self.lease * 2 / 15


class Elector:
    """One candidate."""

    def __init__(self, api: ApiServer, lease: Key, identity: str, timing: Timing) -> None:
        self._api = api
        self._lease = lease
        self._identity = identity
        self._timing = timing
        self._leads_until = 0.0
        self._seen: Object | None = None
        self._seen_at = 0.0

    @property
    def leads(self) -> bool:
        """Whether this operator leads, beyond doubt."""
        return _now() < self._leads_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` whenever and as long as this operator leads, until cancelled; then hand over at once."""
        while True:
            await self._campaign()
            logger.info("%s leads", self._identity)
            term = asyncio.ensure_future(lead())
            reign = asyncio.create_task(self._renew())
            try:
                await asyncio.wait((term, reign), return_when=asyncio.FIRST_COMPLETED)
            finally:
                try:
                    await _ended(term, reign)
                finally:
                    await self._release()
            logger.warning("%s leads no more", self._identity)

    async def _campaign(self) -> None:
        while not await self._try():  # noqa: ASYNC110  (nothing here could set an event)
            await asyncio.sleep(self._timing.retry * random.uniform(0.8, 1.0))  # noqa: S311  (so that candidates differ)

    async def _renew(self) -> None:
        """Keep the Lease; returns when it is lost."""
        with suppress(TimeoutError):
            while self.leads:
                async with asyncio.timeout(self._leads_until - _now()):
                    await asyncio.sleep(self._timing.retry)
                    await self._try()

    async def _try(self) -> bool:
        """Get or renew the Lease; returns whether that is done."""
        began = _now()
        try:
            async with asyncio.timeout(self._timing.renew):
                ours = await self._write()
        except (OperatorError, TimeoutError) as error:  # another was quicker, or it is not allowed, or no answer came
            logger.warning("Lease %s: %s", self._lease, error or "no answer in time")
            return False
        self._leads_until = began + self._timing.renew if ours else 0.0
        return ours

    async def _write(self) -> bool:
        live = await self._api.get(LEASE, self._lease)
        if live is None:
            body = {**_lease(self._lease), "spec": self._spec({})}
            await self._api.call("POST", path_of(LEASE, self._lease.namespace), body=body)
            return True
        if self._taken(live):
            return False
        body = {**live, "spec": self._spec(live.get("spec", {}))}
        await self._api.call("PUT", path_of(LEASE, *self._lease), body=body)
        return True

    def _taken(self, live: Object) -> bool:
        """Return whether another holds the Lease, and has renewed it lately."""
        if self._seen is None or self._seen["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
            self._seen, self._seen_at = live, _now()
        spec = live.get("spec", {})
        if spec.get("holderIdentity", "") in ("", self._identity):
            return False
        lasts: int = spec.get("leaseDurationSeconds", self._timing.lease)
        return _now() < self._seen_at + lasts

    def _spec(self, before: Object, holder: str | None = None) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        holder = self._identity if holder is None else holder
        same = before.get("holderIdentity") == holder
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": self._timing.lease,
            "acquireTime": before.get("acquireTime", now) if same else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not same if before else 0),
        }

    async def _release(self) -> None:
        """Let the next candidate lead at once, where this one still does."""
        if not self.leads:
            return
        self._leads_until = 0.0
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                live = await self._api.get(LEASE, self._lease)
                if live and live["spec"].get("holderIdentity") == self._identity:
                    body = {**live, "spec": self._spec(live["spec"], holder="")}
                    await self._api.call("PUT", path_of(LEASE, *self._lease), body=body)
        except (OperatorError, TimeoutError) as error:
            logger.warning("Lease %s is not handed over, and will have to run out: %r", self._lease, error)


async def _ended(*tasks: asyncio.Future[None]) -> None:
    """Cancel what still runs; raises what went wrong in the rest."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


def _lease(key: Key) -> dict[str, Any]:
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.name,
        "metadata": {"name": key.name, "namespace": key.namespace},
    }


def _now() -> float:
    """Return the seconds since this machine began, also those in which it was suspended."""
    return time.clock_gettime(_CLOCK)
