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
LOAD = {"pod": "a-1", "startedAt": "2026-01-01T00:00:02Z", "seconds": 12.5, "phases": {"image": 2, "warmUp": 0.5}}
LOADED = Notice("Normal", "ModelLoaded", "model a (x): a-1 has loaded it in 12.5 s (image 2 s, warm up 0.5 s)")
UNLOADED = Notice("Normal", "ModelUnloaded", "model a (x) is unloaded")
KILLED = {"lastEnd": {"reason": "OOMKilled", "message": "too much", "at": NOW}}


def crashed(number: int) -> dict[str, Any]:
    at = f"2026-01-01T00:0{number}:00Z"
    return {"lastEnd": {"reason": "ServerCrashed", "message": "code 139", "at": at}}


TABLE = {
    "first seen, loading": (shown(), shown("reloading"), []),
    "first seen, made unloaded": (shown(), shown("unloaded"), []),
    "first seen, loaded": (shown(), shown("loaded", loads=[LOAD]), [LOADED]),
    "loaded": (shown("reloading"), shown("loaded", loads=[LOAD]), [LOADED]),
    "loaded, but nobody knows yet how": (shown("reloading"), shown("loaded"), []),
    "still loaded": (shown("loaded", loads=[LOAD]), shown("loaded", loads=[LOAD]), []),
    "one more replica": (
        shown("loaded", loads=[LOAD]),
        shown("loaded", loads=[LOAD | {"pod": "a-2", "seconds": 3, "phases": {}}, LOAD]),
        [Notice("Normal", "ModelLoaded", "model a (x): a-2 has loaded it in 3 s")],
    ),
    "a server ended and is cured": (
        shown("loaded"),
        shown("loaded", **KILLED),
        [Notice("Warning", "OOMKilled", "model a: a server ended: too much")],
    ),
    "a server's end that is the failure": (
        shown("loaded"),
        shown("internal_error", reason="OOMKilled", message="too much", **KILLED),
        [Notice("Warning", "OOMKilled", "model a: too much")],
    ),
    "an old end": (shown("loaded", **KILLED), shown("loaded", **KILLED), []),
    "unloaded": (shown("loaded"), shown("unloaded"), [UNLOADED]),
    "fails": (shown("reloading"), shown("internal_error", **BAD), [WARNING]),
    "still fails": (shown("internal_error", **BAD), shown("internal_error", **BAD), []),
    "fails in another way": (
        shown("internal_error", reason="OOMKilled", message="m"),
        shown("reloading", **BAD),
        [WARNING],
    ),
    "says more of its failure": (
        shown("internal_error", reason="ImagePull", message="m"),
        shown("internal_error", reason="ImagePull", message="n"),
        [Notice("Warning", "ImagePull", "model a: n")],
    ),
    "crashes once more": (
        shown("internal_error", reason="ServerCrashed", message="restarted 3 times", **crashed(3)),
        shown("internal_error", reason="ServerCrashed", message="restarted 4 times", **crashed(4)),
        [Notice("Warning", "ServerCrashed", "model a: a server ended: code 139")],
    ),
    "recovers": (shown("internal_error", **BAD), shown("loaded", loads=[LOAD]), [LOADED]),
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


def said(kind: str, status: str, reason: str) -> MultiModelStatus:
    condition = {"type": kind, "status": status, "reason": reason, "message": "m"}
    condition |= {"lastTransitionTime": NOW, "observedGeneration": 1}
    return MultiModelStatus.model_validate({"conditions": [condition]})


@pytest.mark.parametrize(
    ("kind", "status", "reason", "warns"),
    [
        ("Progressing", "False", "RolloutBlocked", True),
        ("Progressing", "False", "Settled", False),
        ("Progressing", "True", "RollingOut", False),
        ("Fits", "False", "TooLarge", True),
        ("Fits", "Unknown", "NotKnown", False),
        ("Ready", "False", "ModelsLoading", False),
    ],
)
def test_conditions_that_somebody_should_act_upon(kind: str, status: str, reason: str, warns: bool) -> None:
    current = said(kind, status, reason)
    expected = [Notice("Warning", reason, "m")] if warns else []
    assert notices(MultiModelStatus(), current) == expected
    assert notices(current, current) == []


def test_an_id_that_another_model_takes_over_is_told() -> None:
    moved = shown("loaded").models[0].model_copy(update={"id": "y"})
    current = MultiModelStatus(models=[moved])
    note = "model a is served as y, no longer as x"
    assert notices(shown("loaded"), current) == [Notice("Normal", "IdMoved", note)]
