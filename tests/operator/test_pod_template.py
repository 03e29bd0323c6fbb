"""A patch of the pod template: how it merges, and what it cannot undo."""

from typing import Any

import pytest
from hypothesis import given, settings, strategies

from multimodel_api.manifest import MultiModelSpec
from multimodel_operator import resources
from multimodel_operator.objects import Key
from multimodel_operator.owned import Owner
from multimodel_operator.settings import Images

OWNER = Owner(Key("team", "chat"), "uid-1")
LABELS = {
    "multimodel.dev/multimodel": "chat",
    "multimodel.dev/model": "a",
    "app.kubernetes.io/component": "modelserver",
}


def template(
    patch: dict[str, Any] | None = None, residency: dict[str, Any] | None = None, **model: Any
) -> dict[str, Any]:
    described = {"name": "a", "plain": {"modelId": "org/a"}, "podTemplate": patch or {}, **model}
    document = {"models": [described], "residency": residency or {}}
    children = resources.children(OWNER, MultiModelSpec.model_validate(document), Images("router:1", "modelserver:1"))
    (found,) = [
        child.document["spec"]["template"]
        for child in children
        if (child.document["kind"], child.document["metadata"]["name"]) == ("Deployment", "chat-model-a")
    ]
    return dict(found)


def named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [item for item in items if item["name"] == name]
    return found


def test_an_empty_patch_changes_nothing() -> None:
    assert template({}) == template()
    assert template({"metadata": {}, "spec": {"containers": []}}) == template()


def test_maps_are_merged_and_null_removes() -> None:
    patched = template(
        {
            "metadata": {"annotations": {"sidecar.example/inject": "false"}, "labels": {"team": "search"}},
            "spec": {"dnsPolicy": "None", "enableServiceLinks": None, "terminationGracePeriodSeconds": 30},
        }
    )
    assert patched["metadata"]["annotations"] == {"sidecar.example/inject": "false"}
    assert patched["metadata"]["labels"]["team"] == "search"
    assert patched["spec"]["dnsPolicy"] == "None"
    assert patched["spec"]["terminationGracePeriodSeconds"] == 30
    assert "enableServiceLinks" not in patched["spec"]


def test_containers_are_merged_by_name_and_others_added() -> None:
    patch = {
        "spec": {
            "containers": [
                {
                    "name": "modelserver",
                    "workingDir": "/models",
                    "env": [{"name": "HF_HOME", "value": "/other"}],
                    "volumeMounts": [{"mountPath": "/cache", "name": "hub-cache", "subPath": "a"}],
                },
                {"name": "log-shipper", "image": "shipper:1"},
            ],
            "volumes": [{"name": "hub-cache", "nfs": {"server": "nas", "path": "/hub"}}],
            "tolerations": [{"key": "spot"}],
        }
    }
    spec = template(patch, resources={"limits": {"nvidia.com/gpu": 1}})["spec"]
    server = named(spec["containers"], "modelserver")
    assert server["workingDir"] == "/models"
    assert server["command"] == ["python", "-m", "multimodel_server"]
    assert named(server["env"], "HF_HOME") == {"name": "HF_HOME", "value": "/other"}
    assert named(server["env"], "HOME") == {"name": "HOME", "value": "/tmp"}
    assert {"mountPath": "/cache", "name": "hub-cache", "subPath": "a"} in server["volumeMounts"]
    assert named(spec["containers"], "log-shipper")["image"] == "shipper:1"
    assert named(spec["volumes"], "hub-cache") == {"name": "hub-cache", "nfs": {"server": "nas", "path": "/hub"}}
    assert spec["tolerations"] == [{"key": "spot"}], "a list without keys takes the place of ours"


HOSTILE = {
    "metadata": {"labels": dict.fromkeys(LABELS, "stolen")},
    "spec": {
        "hostNetwork": True,
        "hostPID": True,
        "hostIPC": True,
        "automountServiceAccountToken": True,
        "securityContext": {
            "runAsNonRoot": False,
            "runAsUser": 1000,
            "seccompProfile": {"type": "Unconfined"},
            "sysctls": [{"name": "kernel.msgmax", "value": "1"}],
        },
        "containers": [
            {"name": "modelserver", "securityContext": {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}}},
            {"name": "extra", "image": "extra:1"},
        ],
        "initContainers": [
            {"name": "first", "image": "first:1", "securityContext": {"allowPrivilegeEscalation": True}}
        ],
    },
}


def test_labels_and_security_stay() -> None:
    patched = template(HOSTILE)
    assert patched["metadata"]["labels"] == template()["metadata"]["labels"]
    spec = patched["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["automountServiceAccountToken"] is False
    profile = {"type": "RuntimeDefault"}
    assert (
        spec["securityContext"].items() >= {"runAsUser": 1000, "runAsNonRoot": True, "seccompProfile": profile}.items()
    )
    assert "sysctls" not in spec["securityContext"]
    expected = named(template()["spec"]["containers"], "modelserver")["securityContext"]
    contexts = [container["securityContext"] for container in (*spec["containers"], *spec["initContainers"])]
    assert contexts == [expected] * 3


@pytest.mark.parametrize(
    "spec",
    [
        {"securityContext": None, "containers": [{"name": "modelserver", "securityContext": None}]},
        {"securityContext": "none", "automountServiceAccountToken": None},
    ],
)
def test_null_and_nonsense_remove_no_security(spec: dict[str, Any]) -> None:
    patched = template({"spec": spec})["spec"]
    assert patched["securityContext"]["runAsNonRoot"] is True
    assert patched["automountServiceAccountToken"] is False
    assert named(patched["containers"], "modelserver")["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_gate_stays() -> None:
    residency = {"maxLoaded": 1}
    for gates in (None, [], [{"name": "example.com/mine"}]):
        gated = template({"spec": {"schedulingGates": gates}}, residency=residency)
        assert gated["spec"]["schedulingGates"] == template(residency=residency)["spec"]["schedulingGates"]


@pytest.mark.parametrize("containers", ["none", [1], [{"image": "nameless:1"}], [{"name": ["a"]}]])
def test_other_nonsense_is_left_to_the_api_servers_words(containers: Any) -> None:
    assert template({"spec": {"containers": containers}})["metadata"] == template()["metadata"]


FIELDS = [
    *("securityContext", "automountServiceAccountToken", "hostNetwork", "hostPID", "hostIPC", "schedulingGates"),
    *(
        "containers",
        "initContainers",
        "volumes",
        "env",
        "name",
        "privileged",
        "capabilities",
        "runAsNonRoot",
        "runAsUser",
    ),
]
JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.sampled_from(["modelserver", "tmp", "x", 0, 1]),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)


OURS = template()["spec"]


@settings(max_examples=60, deadline=None)
@given(spec=strategies.dictionaries(strategies.sampled_from(FIELDS), JSON, max_size=4))
def test_no_patch_undoes_security(spec: dict[str, Any]) -> None:
    ours, patched = OURS, template({"spec": spec})["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & patched.keys()
    assert patched["automountServiceAccountToken"] is False
    assert (
        patched["securityContext"].items()
        >= {key: ours["securityContext"][key] for key in ("runAsNonRoot", "seccompProfile")}.items()
    )
    for field in ("containers", "initContainers"):
        listed = patched.get(field)
        for container in listed if isinstance(listed, list) else []:
            if isinstance(container, dict):
                security = container["securityContext"]
                assert security.items() >= ours["containers"][0]["securityContext"].items()
                assert "privileged" not in security


@pytest.mark.control_plane
@pytest.mark.parametrize("patch", [None, HOSTILE], ids=["no patch", "a hostile patch"])
def test_a_namespace_that_enforces_the_restricted_standard_takes_the_pods(namespace: Any, patch: Any) -> None:
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    namespace.patch(f"/api/v1/namespaces/{namespace.name}", enforce)
    made = template(patch, cache={"sizeLimit": "1Gi"}, resources={"limits": {"nvidia.com/gpu": 1}})
    made["spec"]["containers"] = [{**c, "image": c.get("image", "x")} for c in made["spec"]["containers"]]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**made["metadata"], "name": "p"}, "spec": made["spec"]}
    response = namespace.client.post(namespace.path("pods"), json=pod, params={"dryRun": "All"})
    assert response.is_success, response.text
