"""How long each part of a load took, from a pod as the kubelet shows it and what its server says."""

from typing import Any

import pytest

from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_api.status import MAX_LOADS, Load
from multimodel_operator import timeline
from multimodel_operator.timeline import Run

PROGRESS = LoadProgress(
    phase=LoadPhase.READY,
    seconds={
        LoadPhase.STARTING: 1.04,
        LoadPhase.DOWNLOADING: 20.0,
        LoadPhase.READING_WEIGHTS: 3.25,
        LoadPhase.WARMING_UP: 0.5,
    },
)


def at(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z"


def pod(name: str = "p", *, started: int = 9, ready: int = 40, restarts: int = 0, **metadata: Any) -> dict[str, Any]:
    server = {"name": "modelserver", "restartCount": restarts, "state": {"running": {"startedAt": at(started)}}}
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(2)},
        {"type": "Ready", "status": "True", "lastTransitionTime": at(ready)},
    ]
    return {
        "metadata": {"name": name, "creationTimestamp": at(0)} | metadata,
        "status": {"podIP": "10.0.0.7", "conditions": conditions, "containerStatuses": [server]},
    }


RUN = Run("p", at(9), "10.0.0.7")


def test_a_load_is_told_part_by_part() -> None:
    (load,) = timeline.loads([], [pod()], {RUN: PROGRESS})
    assert load.phases.model_dump() == {
        "scheduling": 2.0,
        "image": 7.0,
        "start": 1.0,
        "download": 20.0,
        "weights": 3.2,
        "warm_up": 0.5,
    }
    assert load.seconds == pytest.approx(33.7)
    assert timeline.sentence(load) == (
        "33.7 s (scheduling 2 s, image 7 s, start 1 s, download 20 s, weights 3.2 s, warm up 0.5 s)"
    )


def test_without_the_servers_word_a_load_ends_when_its_pod_is_ready() -> None:
    (load,) = timeline.loads([], [pod()], {RUN: None})
    assert load.seconds == 40
    assert load.phases.model_dump(exclude_none=True) == {"scheduling": 2.0, "image": 7.0}


def test_a_restarted_server_had_its_node_and_its_image() -> None:
    run = Run("p", at(100), "10.0.0.7")
    (load,) = timeline.loads([], [pod(started=100, ready=130, restarts=1)], {run: None})
    assert (load.seconds, load.phases.model_dump(exclude_none=True)) == (30, {})


def test_a_load_that_is_not_reported_yet_waits() -> None:
    assert timeline.new_runs([], [pod()]) == [RUN]
    assert timeline.loads([], [pod()], {}) == []


def test_a_load_is_told_once_however_often_readiness_comes_and_goes() -> None:
    known = timeline.loads([], [pod()], {RUN: PROGRESS})
    flapped = pod(ready=500)
    assert timeline.new_runs(known, [flapped]) == []
    assert timeline.loads(known, [flapped], {}) == known


@pytest.mark.parametrize("change", [{"deletionTimestamp": at(50)}, {}])
def test_only_pods_that_serve_have_loaded(change: dict[str, str]) -> None:
    found = pod(**change)
    if not change:
        found["status"]["conditions"][1]["status"] = "False"
    assert timeline.new_runs([], [found]) == []


def test_the_last_five_loads_are_kept_and_an_old_one_does_not_come_back() -> None:
    pods = [pod(f"p{number}", started=10 * number) for number in range(1, 8)]
    runs = timeline.new_runs([], pods)
    kept = timeline.loads([], pods, dict.fromkeys(runs))
    assert [load.pod for load in kept] == ["p7", "p6", "p5", "p4", "p3"]
    assert len(kept) == MAX_LOADS
    assert timeline.new_runs(kept, pods) == [], "p1 and p2 still run, and were told long ago"


def test_known_loads_outlive_their_pods() -> None:
    known = [Load(pod="gone", started_at=at(1), seconds=3)]
    kept = timeline.loads(known, [pod()], {RUN: None})
    assert [load.pod for load in kept] == ["p", "gone"]
