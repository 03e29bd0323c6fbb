"""The times in Kubernetes objects: RFC 3339 texts, to the second or finer."""

from datetime import datetime


def moment(text: str) -> datetime:
    """Return the time that a text says; raises ValueError for one that says none."""
    return datetime.fromisoformat(text)


def seconds_between(earlier: str, later: str) -> float:
    """Return how many seconds lie between two times; negative where they come in the other order."""
    return (moment(later) - moment(earlier)).total_seconds()
