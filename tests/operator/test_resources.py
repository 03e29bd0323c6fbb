"""The objects that a MultiModel needs: names, security, what is passed through and what is kept literal."""

from typing import Any

import pytest

from multimodel_api import names
from multimodel_api.manifest import MultiModelSpec
from multimodel_operator import resources
from multimodel_operator.objects import Key
from multimodel_operator.resources import Child, Owner
from multimodel_operator.settings import Images

OWNER = Owner(Key("team", "chat"), "uid-1")
IMAGES = Images("router:1", "modelserver:1", "Never")


def built(*models: dict[str, Any], **spec: Any) -> dict[tuple[str, str], Child]:
    children = resources.children(OWNER, MultiModelSpec.model_validate({"models": list(models), **spec}), IMAGES)
    return {(child.document["kind"], child.document["metadata"]["name"]): child for child in children}


def plain(name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"name": name, "plain": {"modelId": f"org/{name}"}, **fields}


def pod_of(child: Child) -> dict[str, Any]:
    spec: dict[str, Any] = child.document["spec"]["template"]["spec"]
    return spec


def container_of(child: Child) -> dict[str, Any]:
    (container,) = pod_of(child)["containers"]
    return container


def test_one_deployment_and_service_per_model_and_a_router_with_rights() -> None:
    assert list(built(plain("a"), plain("b"))) == [
        ("ServiceAccount", "chat-router"),
        ("Role", "chat-router"),
        ("RoleBinding", "chat-router"),
        ("Service", "chat-router"),
        ("Service", "chat-model-a"),
        ("Service", "chat-model-b"),
        ("Deployment", "chat-model-a"),
        ("Deployment", "chat-model-b"),
        ("Deployment", "chat-router"),
    ]


def test_every_child_is_owned_labelled_and_in_the_namespace() -> None:
    for child in built(plain()).values():
        metadata = child.document["metadata"]
        assert metadata["namespace"] == "team"
        assert metadata["labels"][names.LABEL_INSTANCE] == "chat"
        assert metadata["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
        (owner,) = metadata["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("uid-1", True, True)


@pytest.mark.parametrize("name", ["chat-model-a", "chat-router"])
def test_pods_meet_the_restricted_standard(name: str) -> None:
    deployment = built(plain())["Deployment", name]
    pod, container = pod_of(deployment), container_of(deployment)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["terminationMessagePolicy"] == "File"
    assert {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")} == {
        "startupProbe": "/health/live",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert container["imagePullPolicy"] == "Never"


def test_only_routers_get_a_token() -> None:
    children = built(plain())
    assert pod_of(children["Deployment", "chat-model-a"])["automountServiceAccountToken"] is False
    assert pod_of(children["Deployment", "chat-router"])["serviceAccountName"] == "chat-router"


def test_a_models_replicas_count_only_at_its_creation() -> None:
    children = built(plain("a"), plain("b", scaling={"minReplicas": 0}), router={"replicas": 3})
    assert "replicas" not in children["Deployment", "chat-model-a"].document["spec"]
    assert children["Deployment", "chat-model-a"].initial_replicas == 1
    assert children["Deployment", "chat-model-b"].initial_replicas == 0
    assert children["Deployment", "chat-router"].document["spec"]["replicas"] == 3
    assert children["Deployment", "chat-router"].initial_replicas is None


def test_the_servers_command_line_is_that_of_the_contract() -> None:
    container = container_of(built(plain(alias="x"), engine={"maxSeqs": 4})["Deployment", "chat-model-a"])
    assert container["command"] == ["python", "-m", "multimodel_server"]
    expected = {"--model=org/a", "--alias=x", "--max-seqs=4", "--host=0.0.0.0", "--port=8000"}
    assert expected | {"--failure-file=/dev/termination-log"} <= set(container["args"])


def test_kubernetes_replaces_nothing_in_arguments() -> None:
    engine = {"chatTemplate": "$(HOME) costs $$5 and $x"}
    container = container_of(built(plain(engine=engine))["Deployment", "chat-model-a"])
    assert "--chat-template=$$(HOME) costs $$$$5 and $$x" in container["args"]


def test_pod_fields_of_the_manifest_pass_through_and_win() -> None:
    deployment = built(
        plain(
            env=[{"name": "HF_HOME", "value": "/disk"}, {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {}}}],
            volumes=[{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}],
            volumeMounts=[{"name": "disk", "mountPath": "/cache"}],
            resources={"limits": {"nvidia.com/gpu": 1}},
        )
    )["Deployment", "chat-model-a"]
    container = container_of(deployment)
    assert [v["name"] for v in container["env"]] == ["HOME", "HF_HOME", "HF_TOKEN"]
    assert container["env"][1]["value"] == "/disk"
    assert {m["mountPath"]: m["name"] for m in container["volumeMounts"]} == {"/tmp": "tmp", "/cache": "disk"}
    assert "disk" in {v["name"] for v in pod_of(deployment)["volumes"]}
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}


def test_a_kind_that_cannot_be_loaded_gets_nothing() -> None:
    gguf = {"quantizedModelId": "org/q", "quantizedFilename": "q.gguf"}
    children = built(plain("a"), {"name": "g", "gguf": gguf})
    assert not [name for _, name in children if name.endswith("-g")]


def test_a_router_may_scale_its_own_models_alone() -> None:
    def scaling(*models: dict[str, Any]) -> list[dict[str, Any]]:
        rules = built(*models)["Role", "chat-router"].document["rules"]
        return [rule for rule in rules if "deployments/scale" in rule["resources"]]

    (rule,) = scaling(plain("a"), plain("b"))
    assert rule["resourceNames"] == ["chat-model-a", "chat-model-b"]
    gguf = {"quantizedModelId": "org/q", "quantizedFilename": "q.gguf"}
    assert scaling({"name": "g", "gguf": gguf}) == [], "no names would mean all names"


def test_the_grace_period_is_longer_than_the_drain() -> None:
    for name in ("chat-model-a", "chat-router"):
        deployment = built(plain())["Deployment", name]
        (drain,) = [a.partition("=")[2] for a in container_of(deployment)["args"] if a.startswith("--drain-seconds")]
        stop = container_of(deployment).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod_of(deployment)["terminationGracePeriodSeconds"] >= int(drain) + stop + 10


def test_long_names_are_cut_and_stay_apart() -> None:
    owner = Owner(Key("team", "n" * 63), "uid-1")
    spec = MultiModelSpec.model_validate({"models": [plain("m" * 60 + "1"), plain("m" * 60 + "2")]})
    found = {child.document["metadata"]["name"] for child in resources.children(owner, spec, IMAGES)}
    assert len(found) == 3, "the router and two models"
    assert max(len(name) for name in found) <= 63
