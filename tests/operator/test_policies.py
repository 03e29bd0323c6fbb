"""Who may reach the pods, and how many may be evicted at once."""

from typing import Any

import pytest

from multimodel_api.manifest import MultiModelSpec
from multimodel_operator import resources
from multimodel_operator.objects import Key
from multimodel_operator.owned import Owner
from multimodel_operator.settings import Images

OWNER = Owner(Key("team", "chat"), "uid-1")


def children(kind: str, model: dict[str, Any] | None = None, **fields: Any) -> dict[str, dict[str, Any]]:
    namespaces = fields.pop("metrics_namespaces", ())
    spec = MultiModelSpec.model_validate(
        {"models": [{"name": "a", "plain": {"modelId": "org/a"}, **(model or {})}], **fields}
    )
    made = resources.children(OWNER, spec, Images("router:1", "modelserver:1"), metrics_namespaces=namespaces)
    documents = [child.document for child in made if child.document["kind"] == kind]
    return {document["metadata"]["name"]: dict(document) for document in documents}


def pod_labels(deployment: str) -> dict[str, str]:
    labels: dict[str, str] = children("Deployment")[deployment]["spec"]["template"]["metadata"]["labels"]
    return labels


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted: dict[str, str] = selector["matchLabels"]
    return wanted.items() <= labels.items()


def test_only_the_routers_and_the_metrics_readers_reach_the_models() -> None:
    policy = children("NetworkPolicy", metrics_namespaces=["operators", "monitoring"])["chat-models"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert selects(policy["podSelector"], pod_labels("chat-model-a"))
    assert not selects(policy["podSelector"], pod_labels("chat-router"))
    (rule,) = policy["ingress"]
    router, *readers = rule["from"]
    assert selects(router["podSelector"], pod_labels("chat-router"))
    assert not selects(router["podSelector"], pod_labels("chat-router") | {"multimodel.dev/multimodel": "another"})
    named = [reader["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for reader in readers]
    assert named == ["operators", "monitoring"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]


def test_everybody_reaches_the_routers_port() -> None:
    policy = children("NetworkPolicy")["chat-router"]["spec"]
    assert selects(policy["podSelector"], pod_labels("chat-router"))
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]


@pytest.mark.parametrize(
    ("scaling", "budget"),
    [
        ({}, None),
        ({"minReplicas": 0}, None),
        ({"minReplicas": 2}, 1),
        ({"maxReplicas": 3}, 1),
        ({"autoscaler": "external"}, 1),
    ],
)
def test_a_model_has_a_budget_if_it_may_have_several_replicas(scaling: dict[str, Any], budget: int | None) -> None:
    found = children("PodDisruptionBudget", {"scaling": scaling}).get("chat-model-a")
    assert (found and found["spec"]["maxUnavailable"]) == budget
    assert found is None or selects(found["spec"]["selector"], pod_labels("chat-model-a"))


@pytest.mark.parametrize(("replicas", "fewest"), [(1, None), (2, 1), (5, 1)])
def test_routers_have_a_budget_if_there_are_several(replicas: int, fewest: int | None) -> None:
    found = children("PodDisruptionBudget", router={"replicas": replicas}).get("chat-router")
    assert (found and found["spec"]["minAvailable"]) == fewest
    assert found is None or selects(found["spec"]["selector"], pod_labels("chat-router"))
