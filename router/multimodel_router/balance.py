"""Which of several endpoints takes a request; pure."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

LOAD_BOUND = 1.25
"""How many times the mean load an endpoint may have before a prefix goes to the next one.

Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016.
"""


class Balance(StrEnum):
    """The policies."""

    LEAST_LOAD = "least-load"
    PREFIX_HASH = "prefix-hash"


_NAMES_IN_MANIFESTS = {"leastLoad": Balance.LEAST_LOAD, "prefixHash": Balance.PREFIX_HASH}

Candidate = TypeVar("Candidate", bound=Hashable)


def policy_of(name_in_manifest: str | None, default: Balance) -> Balance:
    """Return the policy that a model's manifest names."""
    return _NAMES_IN_MANIFESTS[name_in_manifest] if name_in_manifest else default


def least_load(candidates: Sequence[Candidate], load: Mapping[Candidate, int]) -> Candidate:
    """Return the candidate with the fewest requests in flight, the first of those that tie."""
    return min(candidates, key=lambda candidate: load.get(candidate, 0))


def prefix_hash(candidates: Sequence[Candidate], load: Mapping[Candidate, int], prefix: bytes) -> Candidate:
    """Return the candidate that `prefix` always goes to, unless it has more than its share of the load.

    Candidates are ranked by rendezvous hashing, so that one that comes or goes moves no other's prefixes.
    """
    allowed = LOAD_BOUND * (sum(load.get(candidate, 0) for candidate in candidates) + 1) / len(candidates)
    ranked = sorted(candidates, key=lambda candidate: _weight(prefix, candidate))
    return next(candidate for candidate in ranked if load.get(candidate, 0) < allowed)


def _weight(prefix: bytes, candidate: Hashable) -> bytes:
    return hashlib.blake2b(prefix, digest_size=8, key=repr(candidate).encode()[:64]).digest()
