"""Which of several endpoints takes a request; pure."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Candidate = TypeVar("Candidate", bound=Hashable)


def least_load(candidates: Sequence[Candidate], load: Mapping[Candidate, int]) -> Candidate:
    """Return the candidate with the fewest requests in flight, the first of those that tie."""
    return min(candidates, key=lambda candidate: load.get(candidate, 0))
