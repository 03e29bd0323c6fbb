"""Says what a MultiModel's models do in one short line, for `kubectl get -o wide`; pure."""

from collections.abc import Sequence

from multimodel_api.state import ModelState
from multimodel_api.status import ModelStatus

MOST_NAMES = 3
"""Names after one word; the rest is counted."""

_RESTING = (ModelState.RELOADING, ModelState.LOADED, ModelState.UNLOADED)
"""What is no trouble, and told last."""


def summary(models: Sequence[ModelStatus]) -> str:
    """Return the names of the models after what they do, or fail by, or wait for: what needs a look comes first."""
    names: dict[str, list[str]] = {}
    for model in models:
        names.setdefault(_word(model), []).append(model.name)
    return "; ".join(f"{word}: {_listed(names[word])}" for word in sorted(names, key=_urgency))


def _word(model: ModelStatus) -> str:
    serves = model.state in (ModelState.LOADED, ModelState.UNLOADED)
    return model.state.value if serves or model.reason is None else model.reason.value


def _urgency(word: str) -> int:
    return _RESTING.index(ModelState(word)) if word in _RESTING else -1


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" +{more}" if more > 0 else "")
