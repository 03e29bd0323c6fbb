"""Models change on a real node under steady traffic, and no request fails."""

from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

GPU = "nvidia.com/gpu"
MORE = 10
"""Answers after a change that show that the new one serves."""


def steady_of(busy: Any) -> dict[str, Any]:
    return dict(busy.get("mm", "busy")["spec"]["models"][0])


def pod_names(busy: Any, model: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in busy.pods(model)}


def goes_on(traffic: Any, wait_for: Any) -> None:
    answered = traffic.answered
    wait_for("the traffic goes on", lambda: traffic.answered > answered + MORE)


@pytest.mark.parametrize("gpus", [1, 2], ids=["no spare GPU", "a spare GPU"])
def test_a_rollout_fails_no_request(busy: Any, wait_for: Any, gpus: int) -> None:
    busy.node.set_devices(GPU, gpus)
    before = pod_names(busy, "steady")
    with busy.traffic("busy", "chat") as traffic:
        busy.change("busy", [steady_of(busy) | {"engine": {"maxSeqs": 6 + gpus}}])
        wait_for("the old pod is gone", lambda: before.isdisjoint(pod_names(busy, "steady")), seconds=60)
        wait_for("the new pod serves", lambda: busy.is_settled("busy"))
        goes_on(traffic, wait_for)
    assert traffic.failed == []


def test_an_alias_moves_there_and_back_and_no_request_fails(busy: Any, wait_for: Any) -> None:
    busy.node.set_devices(GPU, 1)
    steady = steady_of(busy)
    heir = {"name": "heir", "alias": "chat", "plain": steady["plain"]}

    def ids() -> dict[str, str]:
        return {model["name"]: model["id"] for model in busy.status("busy")["models"]}

    with busy.traffic("busy", "chat") as traffic:
        busy.change("busy", [steady | {"alias": "former"}, heir])
        wait_for("the alias has moved", lambda: ids() == {"steady": "former", "heir": "chat"})
        assert busy.ready_pod("heir")
        goes_on(traffic, wait_for)
        busy.change("busy", [steady])
        wait_for("the alias is back", lambda: ids() == {"steady": "chat"} and busy.is_settled("busy"))
        wait_for("the heir is gone", lambda: not busy.pods("heir"))
        goes_on(traffic, wait_for)
    assert traffic.failed == []
