"""Requests in flight at every endpoint: acquire returns a lease, so that no count leaks."""

from collections import Counter
from collections.abc import Sequence

from multimodel_router.balance import least_load
from multimodel_router.fleet import Endpoint


class Lease:
    """One request's place at an endpoint, until released."""

    def __init__(self, endpoint: Endpoint, load: Counter[Endpoint]) -> None:
        self.endpoint = endpoint
        self._load: Counter[Endpoint] | None = load
        load[endpoint] += 1

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        if self._load is None:
            return
        self._load[self.endpoint] -= 1
        if not self._load[self.endpoint]:
            del self._load[self.endpoint]
        self._load = None


class Endpoints:
    """Chooses an endpoint and counts what each has in flight."""

    def __init__(self) -> None:
        self.load: Counter[Endpoint] = Counter()

    def acquire(self, candidates: Sequence[Endpoint]) -> Lease:
        """Return a lease at the least loaded of `candidates`, which must not be empty."""
        return Lease(least_load(candidates, self.load), self.load)
