"""What a manifest says of a model's pods: placement, devices, environment, cache, token, bounds of a load."""

from typing import Any

import pytest

from multimodel_api.manifest import MultiModelSpec
from multimodel_operator import resources
from multimodel_operator.objects import Key
from multimodel_operator.owned import Owner
from multimodel_operator.settings import Images

OWNER = Owner(Key("team", "chat"), "uid-1")
IMAGES = Images("router:1", "modelserver:1", "Never")
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def deployment(name: str, spec: dict[str, Any], **model: Any) -> dict[str, Any]:
    document = {"models": [{"name": "a", "plain": {"modelId": "org/a"}, **model}], **spec}
    children = resources.children(OWNER, MultiModelSpec.model_validate(document), IMAGES)
    (found,) = [
        child.document
        for child in children
        if (child.document["kind"], child.document["metadata"]["name"]) == ("Deployment", name)
    ]
    return dict(found)


def model_pod(spec: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    pod: dict[str, Any] = deployment("chat-model-a", spec or {}, **model)["spec"]["template"]["spec"]
    return pod


def server(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


def volume(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [volume for volume in pod["volumes"] if volume["name"] == name]
    return found


def test_environment_and_volumes_pass_through_and_win() -> None:
    pod = model_pod(
        env=[{"name": "HF_HOME", "value": "/disk"}, {"name": "PROXY", "valueFrom": {"secretKeyRef": {}}}],
        volumes=[{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}],
        volumeMounts=[{"name": "disk", "mountPath": "/cache"}],
        resources={"limits": {"nvidia.com/gpu": 1}},
    )
    container = server(pod)
    names = [variable["name"] for variable in container["env"]]
    assert names == ["HOME", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME", "PROXY"]
    assert container["env"][3]["value"] == "/disk"
    assert {m["mountPath"]: m["name"] for m in container["volumeMounts"]} == {"/tmp": "tmp", "/cache": "disk"}
    assert volume(pod, "disk")["persistentVolumeClaim"] == {"claimName": "disk"}
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}


PLACEMENT = {
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
}


def test_placement_passes_through_for_models_and_routers() -> None:
    assert model_pod(**PLACEMENT).items() >= PLACEMENT.items()
    router = deployment("chat-router", {"router": PLACEMENT})["spec"]["template"]["spec"]
    assert router.items() >= PLACEMENT.items()
    assert not PLACEMENT.keys() & model_pod().keys()


@pytest.mark.parametrize(
    ("limits", "tolerations", "expected"),
    [
        ({"nvidia.com/gpu": 1}, [], [GPU_TOLERATION]),
        ({"nvidia.com/mig-1g.10gb": 1}, [], [GPU_TOLERATION]),
        ({"cpu": 1}, [], None),
        ({"nvidia.com/gpu": 1}, [{"key": "spot"}], [{"key": "spot"}, GPU_TOLERATION]),
        ({"nvidia.com/gpu": 1}, [{"key": "nvidia.com/gpu", "value": "a"}], [{"key": "nvidia.com/gpu", "value": "a"}]),
    ],
)
def test_a_model_that_limits_gpus_tolerates_their_taint(limits: Any, tolerations: Any, expected: Any) -> None:
    assert model_pod(resources={"limits": limits}, tolerations=tolerations).get("tolerations") == expected


def test_environment_comes_from_secrets_too() -> None:
    sources = [{"secretRef": {"name": "proxy"}}]
    assert server(model_pod(envFrom=sources))["envFrom"] == sources
    assert "envFrom" not in server(model_pod())


def hub_token(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [variable for variable in server(pod)["env"] if variable["name"] == "HF_TOKEN"]


def test_the_hubs_token_is_read_from_a_secret_and_never_an_argument() -> None:
    def reference(name: str, key: str) -> dict[str, Any]:
        return {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}

    for_all = {"hubToken": {"secretName": "hub"}}
    assert hub_token(model_pod()) == []
    assert hub_token(model_pod(for_all)) == [reference("hub", "token")]
    own = model_pod(for_all, hubToken={"secretName": "mine", "key": "HF"})
    assert hub_token(own) == [reference("mine", "HF")]
    assert not [argument for argument in server(own)["args"] if "mine" in argument or "hub" in argument]
    given = {"name": "HF_TOKEN", "value": "x"}
    assert hub_token(model_pod(for_all, env=[given])) == [given]


@pytest.mark.parametrize(
    ("cache", "source"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "80Gi"}, {"emptyDir": {"sizeLimit": "80Gi"}}),
        ({"persistentVolumeClaim": "hub"}, {"persistentVolumeClaim": {"claimName": "hub"}}),
        ({"hostPath": "/data/hub"}, {"hostPath": {"path": "/data/hub", "type": "DirectoryOrCreate"}}),
    ],
)
def test_files_from_the_hub_are_kept_where_the_manifest_says(cache: Any, source: Any) -> None:
    pod = model_pod(cache=cache)
    assert volume(pod, "hub-cache") == {"name": "hub-cache", **source}
    assert {"name": "hub-cache", "mountPath": "/cache"} in server(pod)["volumeMounts"]
    assert {"name": "HF_HOME", "value": "/cache"} in server(pod)["env"]


def test_compiled_kernels_are_kept_on_the_same_volume() -> None:
    environment = {variable["name"]: variable["value"] for variable in server(model_pod())["env"]}
    assert (environment["TRITON_CACHE_DIR"], environment["XDG_CACHE_HOME"]) == ("/cache/triton", "/cache")


def test_claimed_devices_reach_the_model_server() -> None:
    pod = model_pod(
        resources={"limits": {"memory": "8Gi"}},
        resourceClaims=[
            {"name": "gpu", "resourceClaimTemplateName": "one-gpu"},
            {"name": "nic", "resourceClaimName": "shared", "request": "fast"},
        ],
    )
    assert pod["resourceClaims"] == [
        {"name": "gpu", "resourceClaimTemplateName": "one-gpu"},
        {"name": "nic", "resourceClaimName": "shared"},
    ]
    claims = [{"name": "gpu"}, {"name": "nic", "request": "fast"}]
    assert server(pod)["resources"] == {"limits": {"memory": "8Gi"}, "claims": claims}


def test_all_pods_pull_with_the_same_secrets() -> None:
    spec = {"imagePullSecrets": [{"name": "registry"}]}
    assert model_pod(spec)["imagePullSecrets"] == [{"name": "registry"}]
    router = deployment("chat-router", spec)["spec"]["template"]["spec"]
    assert router["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize(("loading", "seconds"), [({}, 3600), ({"timeoutSeconds": 90}, 90)])
def test_a_load_is_bounded(loading: Any, seconds: int) -> None:
    made = deployment("chat-model-a", {}, loading=loading)["spec"]
    probe = server(made["template"]["spec"])["startupProbe"]
    assert probe["httpGet"]["path"] == "/health/ready"
    assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
    assert made["progressDeadlineSeconds"] > seconds, "a long load is no rollout that is stuck"


def test_a_server_that_is_stuck_is_not_given_the_time_that_answers_get() -> None:
    pod = model_pod()
    for probe in ("startupProbe", "livenessProbe"):
        assert server(pod)[probe]["terminationGracePeriodSeconds"] == 30
    assert "terminationGracePeriodSeconds" not in server(pod)["readinessProbe"]
    assert pod["terminationGracePeriodSeconds"] > 600


def test_routers_prefer_different_nodes() -> None:
    router = deployment("chat-router", {})["spec"]["template"]
    (spread,) = router["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"].items() <= router["metadata"]["labels"].items()
