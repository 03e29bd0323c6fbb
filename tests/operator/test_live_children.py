"""Every object that a MultiModel needs is accepted by a real API server, and then seen as it was wanted."""

import json
from typing import Any

import pytest

from multimodel_api.manifest import MultiModel
from multimodel_operator import drift, resources
from multimodel_operator.objects import Key, kind_of
from multimodel_operator.owned import Child, Owner
from multimodel_operator.settings import Images

pytestmark = pytest.mark.control_plane

EVERYTHING = {
    "nodeSelector": {"example.com/gpu": "h200"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "runtimeClassName": "nvidia",
    "priorityClassName": "system-node-critical",
    "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi", "nvidia.com/gpu": 1}},
    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu", "request": "any"}],
    "env": [{"name": "PROXY", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "url"}}}],
    "envFrom": [{"configMapRef": {"name": "common"}}],
    "volumes": [{"name": "disk", "emptyDir": {"sizeLimit": "1024Mi"}}],
    "volumeMounts": [{"name": "disk", "mountPath": "/models", "readOnly": False}],
    "hubToken": {"secretName": "hub"},
    "cache": {"sizeLimit": "1024Mi"},
    "loading": {"timeoutSeconds": 90},
    "scaling": {"minReplicas": 2, "maxReplicas": 4},
    "podTemplate": {
        "metadata": {"annotations": {"example.com/inject": "false"}, "labels": {"team": "search"}},
        "spec": {
            "enableServiceLinks": None,
            "containers": [
                {"name": "modelserver", "livenessProbe": {"httpGet": None, "exec": {"command": ["true"]}}},
                {"name": "shipper", "image": "shipper:1"},
            ],
        },
    },
}


def wanted_of(namespace: Any, multimodel: dict[str, Any]) -> list[Child]:
    owner = Owner(Key(namespace.name, "mm"), multimodel["metadata"]["uid"])
    spec = MultiModel.model_validate(multimodel).spec
    return resources.children(owner, spec, Images("router:1", "modelserver:1"), metrics_namespaces=["operators"])


def apply(namespace: Any, document: Any) -> dict[str, Any]:
    kind = kind_of(document)
    group = "api" if "/" not in kind.api_version else "apis"
    path = f"/{group}/{kind.api_version}/namespaces/{namespace.name}/{kind.plural}/{document['metadata']['name']}"
    response = namespace.client.patch(
        path,
        content=json.dumps(document),
        headers={"Content-Type": "application/apply-patch+yaml"},
        params={"fieldManager": "test", "fieldValidation": "Strict"},
    )
    assert response.is_success, f"{kind.name}: {response.text}"
    made: dict[str, Any] = response.json()
    return made


def test_what_is_applied_is_held(namespace: Any, operator: Any, model: Any) -> None:
    with operator.paused():
        multimodel = namespace.multimodel(
            model("a", **EVERYTHING),
            model("b", scaling={"autoscaler": "external"}),
            hubToken={"secretName": "hub"},
            imagePullSecrets=[{"name": "registry"}],
            router={"nodeSelector": {"role": "front"}, "tls": {"secretName": "tls"}},
        )
        children = [drift.stamped(child.document) for child in wanted_of(namespace, multimodel)]
        live = [apply(namespace, document) for document in children]
    assert [drift.difference(document, made) for document, made in zip(children, live, strict=True)] == [None] * len(
        live
    )
    kinds = {made["kind"] for made in live}
    assert {"NetworkPolicy", "PodDisruptionBudget", "Deployment", "Role"} <= kinds
    (server,) = [made for made in live if (made["kind"], made["metadata"]["name"]) == ("Deployment", "mm-model-a")]
    pod = server["spec"]["template"]["spec"]
    (container,) = [found for found in pod["containers"] if found["name"] == "modelserver"]
    assert "httpGet" not in container["livenessProbe"], "null came through the resource and removed it"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
