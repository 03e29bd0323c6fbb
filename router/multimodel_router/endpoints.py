"""Requests in flight at every endpoint: acquire returns a lease, so that no count leaks; silent endpoints are found."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence

from multimodel_api.manifest import Model
from multimodel_router.balance import Balance, least_load, prefix_hash
from multimodel_router.fleet import Endpoint, ModelView
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.vetted import VettedFleet

logger = logging.getLogger(__name__)

SILENT_SECONDS = 10.0
"""An endpoint that has sent nothing of any answer for this long is asked whether it lives."""

CHECK_SECONDS = 1.0
DEAF_PROBES = 2
"""Probes in a row without an answer after which an endpoint's answers count as broken."""


class Lease:
    """One request's place at an endpoint, until released."""

    __slots__ = ("_leases", "_task", "began", "endpoint", "heard", "lost", "model", "unloaded")

    def __init__(self, model: Model, endpoint: Endpoint, leases: set["Lease"]) -> None:
        self.model = model
        self.endpoint = endpoint
        self.heard = True
        """Whether the endpoint has sent a byte of the answer since the last look."""
        self.began = time.time()
        """Seconds since the epoch, to be compared with what other routers say."""
        self.lost = False
        """Whether nobody waits for the endpoint any more."""
        self.unloaded = False
        """Whether patience was lost because the model was unloaded, and not because the endpoint is deaf."""
        self._leases = leases
        self._task: asyncio.Task[object] | None = None
        leases.add(self)

    def hold(self) -> None:
        """Have this task cancelled when patience is lost; `gave_up` tells it from a client that left."""
        self._task = asyncio.current_task()
        if self.lost and self._task:
            self._task.cancel()

    def gave_up(self) -> bool:
        """Return whether a cancellation came of lost patience alone; it is undone then."""
        return self.lost and self._task is not None and self._task.uncancel() == 0

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        self._leases.discard(self)

    def lose_patience(self, *, unloaded: bool = False) -> None:
        """End what talks to the endpoint."""
        if self.lost:
            return
        self.lost, self.unloaded = True, unloaded
        if self._task:
            self._task.cancel()


class Endpoints:
    """Chooses an endpoint and counts what each has in flight."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._leases: dict[Endpoint, set[Lease]] = {}
        self._silent_since: dict[Endpoint, float] = {}
        self._deaf: Counter[Endpoint] = Counter()

    @property
    def load(self) -> dict[Endpoint, int]:
        """Requests in flight by endpoint."""
        return {endpoint: len(leases) for endpoint, leases in self._leases.items() if leases}

    def acquire(self, model: Model, candidates: Sequence[Endpoint], policy: Balance, prefix: bytes = b"") -> Lease:
        """Return a lease at one of `candidates`, which must not be empty."""
        if len(candidates) == 1:
            chosen = candidates[0]
        elif policy is Balance.PREFIX_HASH:
            chosen = prefix_hash(candidates, self.load, prefix)
        else:
            chosen = least_load(candidates, self.load)
        return Lease(model, chosen, self._leases.setdefault(chosen, set()))

    async def watch(self, fleet: VettedFleet) -> None:
        """Give up endpoints that answer nothing any more, and answers of unloaded models, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self._end_overdue(fleet)
            silent = self._look(asyncio.get_running_loop().time())
            await asyncio.gather(*(self._listen(endpoint, fleet) for endpoint in silent))

    def _end_overdue(self, fleet: VettedFleet) -> None:
        now = time.time()
        for leases in self._leases.values():
            for lease in [x for x in leases if overdue(fleet.view(x.model.name), x.began, now)]:
                lease.lose_patience(unloaded=True)

    def _look(self, now: float) -> list[Endpoint]:
        """Return the endpoints of which nothing has been heard for long enough to ask them."""
        self._leases = {endpoint: leases for endpoint, leases in self._leases.items() if leases}
        for endpoint, leases in self._leases.items():
            heard = [lease for lease in leases if lease.heard]
            for lease in heard:
                lease.heard = False
            if heard:
                self._silent_since.pop(endpoint, None)
            else:
                self._silent_since.setdefault(endpoint, now)
        self._silent_since = {e: since for e, since in self._silent_since.items() if e in self._leases}
        return [endpoint for endpoint, since in self._silent_since.items() if now - since >= SILENT_SECONDS]

    async def _listen(self, endpoint: Endpoint, fleet: VettedFleet) -> None:
        """Ask a silent endpoint for a sign of life: a long pause is no fault in itself."""
        if await self._probe.answers(endpoint):
            self._deaf.pop(endpoint, None)
            return
        self._deaf[endpoint] += 1
        if self._deaf[endpoint] < DEAF_PROBES:
            return
        del self._deaf[endpoint]
        for lease in list(self._leases.get(endpoint, ())):
            logger.warning("model %s: %s:%d answers nothing any more", lease.model.name, *endpoint)
            fleet.eject(lease.model.name, endpoint, "deaf")
            lease.lose_patience()


def overdue(view: ModelView, began: float, now: float) -> bool:
    """Return whether an answer that `began` then has had the time that an unload gave it; pure."""
    unload = view.unload
    return unload is not None and view.desired == 0 and began <= unload.at and now > unload.at + unload.drain_seconds
