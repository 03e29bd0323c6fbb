"""The status as a table: what is observed, and what people are told."""

from typing import Any

import pytest

from multimodel_api.manifest import MultiModelSpec
from multimodel_api.status import MultiModelStatus
from multimodel_operator import status
from multimodel_operator.objects import Observed

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T01:00:00Z"
SPEC = MultiModelSpec.model_validate(
    {
        "models": [
            {"name": "a", "alias": "first", "plain": {"modelId": "org/a"}},
            {"name": "b", "plain": {"modelId": "org/b"}},
        ]
    }
)


def deployment(name: str, replicas: int, ready: int) -> dict[str, Any]:
    shown = {"readyReplicas": ready} if ready else {}  # as the API server leaves zeros out
    return {"kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas}, "status": shown}


def broken_pod(*, model: str | None, message: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": "modelserver" if model else "router"}
    labels |= {"multimodel.dev/model": model} if model else {}
    waiting = {"reason": "ImagePullBackOff", "message": message}
    container = {"name": "c", "ready": False, "image": "org/server:1", "state": {"waiting": waiting}}
    return {"metadata": {"name": "p", "labels": labels}, "status": {"containerStatuses": [container]}}


def observed(*, a: tuple[int, int] = (1, 1), b: tuple[int, int] = (1, 1), router: int = 2, pods: Any = ()) -> Observed:
    children = (
        deployment("mm-model-a", *a),
        deployment("mm-model-b", *b),
        deployment("mm-router", 2, router),
    )
    return Observed({"metadata": {"name": "mm", "namespace": "team", "generation": 3}}, children, tuple(pods))


def told(seen: Observed, previous: MultiModelStatus | None = None, now: str = NOW, **refusals: str) -> MultiModelStatus:
    by_name = {name.replace("_", "-"): words for name, words in refusals.items()}
    return status.current_status(seen, SPEC, by_name, previous or MultiModelStatus(), now)


def conditions(shown: MultiModelStatus) -> dict[str, tuple[str, str, str]]:
    return {c.type.value: (c.status, c.reason, c.message) for c in shown.conditions}


IMAGE = broken_pod(model="b", message="no such tag")

TABLE: list[tuple[str, Observed, str, dict[str, tuple[str, str]]]] = [
    (
        "all is well",
        observed(),
        "2/2",
        {
            "Ready": ("True", "AllReady"),
            "ModelsReady": ("True", "AllReady"),
            "RouterReady": ("True", "RouterReady"),
            "Degraded": ("False", "NoFailure"),
        },
    ),
    (
        "one model is unloaded, which is fine",
        observed(b=(0, 0)),
        "1/2",
        {"Ready": ("True", "AllReady"), "Degraded": ("False", "NoFailure")},
    ),
    (
        "a model loads",
        observed(b=(1, 0)),
        "1/2",
        {"Ready": ("False", "ModelsLoading"), "ModelsReady": ("False", "ModelsLoading")},
    ),
    (
        "the router starts",
        observed(router=0),
        "2/2",
        {"Ready": ("False", "RouterStarting"), "ModelsReady": ("True", "AllReady")},
    ),
    ("one router of two is enough", observed(router=1), "2/2", {"Ready": ("True", "AllReady")}),
    (
        "a model fails",
        observed(b=(1, 0), pods=[IMAGE]),
        "1/2",
        {
            "Ready": ("False", "ImagePull"),
            "ModelsReady": ("False", "ImagePull"),
            "Degraded": ("True", "ImagePull"),
        },
    ),
    (
        "a replica fails while another serves",
        observed(b=(2, 1), pods=[IMAGE]),
        "2/2",
        {"Ready": ("True", "AllReady"), "Degraded": ("True", "ImagePull")},
    ),
    (
        "a failing pod of an unloaded model is nobody's trouble",
        observed(b=(0, 0), pods=[IMAGE]),
        "1/2",
        {"Ready": ("True", "AllReady"), "Degraded": ("False", "NoFailure")},
    ),
    (
        "the router fails",
        observed(router=0, pods=[broken_pod(model=None, message="no router")]),
        "2/2",
        {
            "RouterReady": ("False", "ImagePull"),
            "Ready": ("False", "ImagePull"),
            "Degraded": ("True", "ImagePull"),
        },
    ),
]


@pytest.mark.parametrize(("case", "seen", "loaded", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_conditions(case: str, seen: Observed, loaded: str, expected: dict[str, tuple[str, str]]) -> None:
    shown = told(seen)
    assert shown.loaded == loaded
    found = {kind: (state, reason) for kind, (state, reason, _) in conditions(shown).items()}
    assert list(found) == ["Ready", "ModelsReady", "RouterReady", "Degraded"]
    assert {kind: found[kind] for kind in expected} == expected


def test_a_failure_names_its_model_and_its_cause() -> None:
    shown = told(observed(b=(1, 0), pods=[IMAGE]))
    assert conditions(shown)["Degraded"][2] == "model b: org/server:1: no such tag"
    (a, b) = shown.models
    assert (a.state, a.reason, a.message) == ("loaded", None, None)
    assert (b.state, b.reason, b.message) == ("internal_error", "ImagePull", "org/server:1: no such tag")


def test_a_missing_deployment_cannot_be_scaled() -> None:
    seen = observed()
    bare = Observed(seen.multimodel, seen.children[1:])
    assert told(bare).models[0].state == "no_loader_config"


def test_what_the_api_server_refused_is_the_models_fault() -> None:
    shown = told(observed(), mm_model_a="spec.env: wrong")
    assert (shown.models[0].reason, shown.models[0].message) == ("BadConfiguration", "spec.env: wrong")
    assert conditions(shown)["Degraded"][0] == "True"


def test_a_transition_keeps_its_time_while_the_status_stays() -> None:
    first = told(observed(b=(1, 0)))
    second = told(observed(b=(1, 0), pods=[IMAGE]), first, LATER)
    times = {c.type.value: c.last_transition_time for c in second.conditions}
    assert times == {"Ready": NOW, "ModelsReady": NOW, "RouterReady": NOW, "Degraded": LATER}


def test_nothing_new_is_the_same_status() -> None:
    first = told(observed())
    again = status.previous_status({"status": first.model_dump(mode="json", by_alias=True, exclude_none=True)})
    assert told(observed(), again, LATER) == again


def test_a_spec_that_is_not_understood_is_said_and_the_rest_kept() -> None:
    first = told(observed())
    shown = status.invalid_status({"metadata": {"generation": 4}}, "models.0.warp: unknown", first, LATER)
    assert conditions(shown)["Ready"] == ("False", "InvalidSpec", "models.0.warp: unknown")
    assert (shown.observed_generation, shown.models) == (4, first.models)


def test_a_status_of_another_version_is_written_anew() -> None:
    assert status.previous_status({"status": {"phase": "Running"}}) == MultiModelStatus()
    assert status.previous_status({}) == MultiModelStatus()
