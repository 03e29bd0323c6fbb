"""Tells whether an object still is what was applied; pure.

Two questions, as neither answer suffices alone: has our own intent changed since (an annotation keeps its digest, which
also shows fields that we no longer want), and has somebody changed a field that we set (the live object must contain
everything that we want).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from multimodel_api import names
from multimodel_operator.objects import Object

ANNOTATION_APPLIED = f"{names.GROUP}/applied"

_EMPTY: tuple[Any, ...] = (None, False, "", [], {})
"""The API server stores none of these."""
_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal("1e3"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("MGTPE", start=2)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_QUANTITY = re.compile(
    rf"(?P<number>[+-]?(?=\.?[0-9])[0-9]{{0,20}}(\.[0-9]{{0,20}})?([eE][+-]?[0-9]{{1,2}})?)(?P<suffix>{'|'.join(_SUFFIXES)})?"
)
"""What a number with its unit looks like; digests of objects do too, now and then, with exponents beyond all bounds."""


def stamped(document: Object) -> Object:
    """Return `document` with the annotation that tells it from other intents."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
    return {**document, "metadata": {**document["metadata"], "annotations": {ANNOTATION_APPLIED: digest}}}


def difference(wanted: Any, live: Any, path: str = "") -> str | None:
    """Return the path of the first field of `wanted` that `live` does not hold, or None when it holds all."""
    if wanted == live:  # most often, and quick
        return None
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        others = ((key, value) for key, value in wanted.items() if value != live.get(key))
        return _first(difference(value, live.get(key), f"{path}.{key}") for key, value in others)
    if isinstance(wanted, list) and isinstance(live, list):
        if len(live) < len(wanted):
            return path
        missing = ((number, item) for number, item in enumerate(wanted) if item not in live)
        return _first(_missing_item(item, live, f"{path}[{number}]") for number, item in missing)
    return None if _same(wanted, live) else path


def _first(differences: Any) -> str | None:
    return next((found for found in differences if found is not None), None)


def _missing_item(wanted: Any, live: list[Any], path: str) -> str | None:
    """Look for an item anywhere: admission may add others before it."""
    return None if any(difference(wanted, item) is None for item in live) else path


def _same(wanted: Any, live: Any) -> bool:
    if wanted == live or (wanted in _EMPTY and live in _EMPTY):
        return True
    return quantity(wanted) is not None and quantity(wanted) == quantity(live)


def quantity(value: Any) -> Decimal | None:
    """Return a Kubernetes quantity as a number: the API server writes `1000m` as `1`."""
    written = _QUANTITY.fullmatch(str(value))
    if written is None:
        return None
    return Decimal(written["number"]) * _SUFFIXES.get(written["suffix"], Decimal(1))
