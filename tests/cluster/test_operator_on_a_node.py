"""Operators come, change and go on a real node under steady traffic: no request fails, and nobody's pods restart."""

from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

LABEL = "multimodel.dev/multimodel=busy"
OPERATORS = ("--namespace=multimodel", "-l", "app.kubernetes.io/component=operator")


def containers(busy: Any) -> set[tuple[str, int]]:
    """Return the containers of routers and models, which a restart or a new pod would change."""
    statuses = (pod["status"]["containerStatuses"] for pod in busy.get("pods", "-l", LABEL)["items"])
    return {(status["containerID"], status["restartCount"]) for found in statuses for status in found}


def rolled_out(busy: Any) -> None:
    busy.node.kubectl("rollout", "status", "deployment/multimodel-operator", "--namespace=multimodel", "--timeout=180s")


def test_an_upgraded_operator_takes_over_and_no_request_fails(busy: Any, wait_for: Any) -> None:
    before, operators = containers(busy), busy.names("pods", *OPERATORS)
    with busy.traffic("busy", "chat") as traffic:
        busy.install("--set=operator.logLevel=DEBUG")
        rolled_out(busy)
        wait_for("the former operators are gone", lambda: operators.isdisjoint(busy.names("pods", *OPERATORS)))
        assert containers(busy) == before
        idle = {"name": "idle", "plain": {"modelId": "idle"}, "scaling": {"minReplicas": 0}}
        busy.change("busy", [*busy.get("mm", "busy")["spec"]["models"], idle])
        wait_for("the new operator works", lambda: busy.model("busy", "idle").get("state") == "unloaded")
    assert traffic.failed == []


def test_an_operator_that_is_uninstalled_takes_nothing_with_it(busy: Any, wait_for: Any) -> None:
    before, written = containers(busy), generations(busy)
    with busy.traffic("busy", "chat") as traffic:
        busy.node.helm("uninstall", "multimodel", "--namespace=multimodel", "--wait")
        wait_for("the operators are gone", lambda: not busy.names("pods", *OPERATORS))
        assert containers(busy) == before
        busy.install()
        rolled_out(busy)
        answered = traffic.answered
        busy.node.kubectl("delete", "deployment", "busy-model-idle")  # what it then makes proves that it has looked
        wait_for("the new operator works", lambda: "busy-model-idle" in busy.names("deployments"))
        wait_for("the traffic goes on", lambda: traffic.answered > answered + 5)
        assert generations(busy) == written
        assert containers(busy) == before
    assert traffic.failed == []


def generations(busy: Any) -> dict[str, int]:
    """Return by name how often the wishes for each object were changed; a new object begins with 1."""
    found = [busy.get("mm", "busy"), *busy.get("deployments,networkpolicies", "-l", LABEL)["items"]]
    return {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["generation"] for item in found}
