"""Events tell transitions, each once."""

from typing import Any

import pytest

from multimodel_api.status import MultiModelStatus
from multimodel_operator.events import Notice, event, notices

MULTIMODEL = {"metadata": {"name": "mm", "namespace": "team", "uid": "uid-1"}}
NOW = "2026-01-01T00:00:00.000000Z"


def shown(state: str | None = None, degraded: tuple[str, str] | None = None, **failure: Any) -> MultiModelStatus:
    models = [{"name": "a", "id": "x", "canonicalId": "org/a", "state": state, **failure}] if state else []
    condition = {"type": "Degraded", "status": "True", "lastTransitionTime": NOW, "observedGeneration": 1}
    conditions = [{**condition, "reason": degraded[0], "message": degraded[1]}] if degraded else []
    return MultiModelStatus.model_validate({"models": models, "conditions": conditions})


BAD = {"reason": "BadWeights", "message": "cut off"}
WARNING = Notice("Warning", "BadWeights", "model a: cut off")
LOADED = Notice("Normal", "Loaded", "model a (x) is loaded")
UNLOADED = Notice("Normal", "Unloaded", "model a (x) is unloaded")

TABLE = {
    "first seen, loading": (shown(), shown("reloading"), []),
    "first seen, made unloaded": (shown(), shown("unloaded"), []),
    "first seen, loaded": (shown(), shown("loaded"), [LOADED]),
    "loaded": (shown("reloading"), shown("loaded"), [LOADED]),
    "still loaded": (shown("loaded"), shown("loaded"), []),
    "unloaded": (shown("loaded"), shown("unloaded"), [UNLOADED]),
    "fails": (shown("reloading"), shown("internal_error", **BAD), [WARNING]),
    "still fails": (shown("internal_error", **BAD), shown("internal_error", **BAD), []),
    "fails in another way": (
        shown("internal_error", reason="OOMKilled", message="m"),
        shown("reloading", **BAD),
        [WARNING],
    ),
    "recovers": (shown("internal_error", **BAD), shown("loaded"), [LOADED]),
    "a model's failure is not said twice": (
        shown("reloading"),
        shown("internal_error", ("BadWeights", "model a: cut off"), **BAD),
        [WARNING],
    ),
    "the router fails": (
        shown("loaded"),
        shown("loaded", ("ImagePull", "router: no image")),
        [Notice("Warning", "ImagePull", "router: no image")],
    ),
    "the router still fails": (
        shown("loaded", ("ImagePull", "router: no image")),
        shown("loaded", ("ImagePull", "router: no image")),
        [],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_transitions(case: str) -> None:
    previous, current, expected = TABLE[case]
    assert notices(previous, current) == expected


def test_the_same_notice_has_the_same_name() -> None:
    first, again = event(WARNING, MULTIMODEL, NOW), event(WARNING, MULTIMODEL, "2026-01-02T00:00:00.000000Z")
    assert first["metadata"]["name"] == again["metadata"]["name"]
    others = [event(LOADED, MULTIMODEL, NOW), event(WARNING, {"metadata": MULTIMODEL["metadata"] | {"uid": "2"}}, NOW)]
    assert first["metadata"]["name"] not in {other["metadata"]["name"] for other in others}


def test_a_long_note_is_cut_to_what_the_api_takes() -> None:
    assert len(event(Notice("Warning", "BadWeights", "x" * 5000), MULTIMODEL, NOW)["note"]) == 1024
