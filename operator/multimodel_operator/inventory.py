"""Counts what the cache shows, for the metrics: MultiModels and models by state; pure."""

from collections import Counter
from collections.abc import Iterable

from multimodel_api.names import ConditionType
from multimodel_api.state import ModelState
from multimodel_operator.objects import Object

READY, DEGRADED, PENDING = "ready", "degraded", "pending"


def multimodels_by_state(multimodels: Iterable[Object]) -> Counter[str]:
    """Return how many MultiModels are degraded, ready without being degraded, or neither yet."""
    counted = Counter({READY: 0, DEGRADED: 0, PENDING: 0})
    counted.update(_state(multimodel) for multimodel in multimodels)
    return counted


def models_by_state(multimodels: Iterable[Object]) -> Counter[str]:
    """Return how many models are in each state, as the statuses tell."""
    counted = Counter({state.value: 0 for state in ModelState})
    for multimodel in multimodels:
        counted.update(model["state"] for model in multimodel.get("status", {}).get("models", []) if "state" in model)
    return counted


def _state(multimodel: Object) -> str:
    conditions = multimodel.get("status", {}).get("conditions", [])
    holding = {condition["type"] for condition in conditions if condition["status"] == "True"}
    if ConditionType.DEGRADED in holding:
        return DEGRADED
    return READY if ConditionType.READY in holding else PENDING
