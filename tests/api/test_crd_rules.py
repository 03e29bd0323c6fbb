"""One table of good and bad manifests, judged twice: by the pydantic types and by a real API server."""

import time
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from multimodel_api import manifest, pod_settings, router_spec, scaling
from multimodel_api.manifest import MultiModel


def model(name: str, model_id: str = "org/a", **fields: Any) -> dict[str, Any]:
    return {"name": name, "plain": {"modelId": model_id}, **fields}


def gguf(name: str, model_id: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "gguf": {"quantizedModelId": model_id, "quantizedFilename": "q4.gguf"}, **fields}


def document(*models: dict[str, Any], object_name: str = "probe", **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "multimodel.dev/v1alpha1",
        "kind": "MultiModel",
        "metadata": {"name": object_name},
        "spec": {"models": list(models), **fields},
    }


GOOD = {
    "one model": document(model("a")),
    "an alias with slashes and dots": document(model("a", alias="org/a.v1:latest")),
    "an alias that is the model's own id": document(model("a", alias="org/a")),
    "one model id under two aliases": document(model("a", alias="x"), model("b", alias="y")),
    "one model id with and without an alias": document(model("a"), model("b", alias="y")),
    "default by alias": document(model("a", alias="x"), defaultModel="x"),
    "default by model id": document(model("a", alias="x"), defaultModel="org/a"),
    "default by quantised model id": document(gguf("a", "org/a-GGUF"), defaultModel="org/a-GGUF"),
    "one KV size": document(model("a", engine={"pagedAttention": {"memoryFraction": 0.5, "blockSize": 32}})),
    "every engine setting": document(
        model(
            "a",
            engine={
                "maxSeqs": 8,
                "maxBatchedTokens": 512,
                "pagedAttention": {"mode": "off", "cacheType": "auto"},
                "prefixCacheN": 0,
                "noKvCache": True,
                "maxSeqLen": 1,
                "maxBatchSize": 1,
                "numDeviceLayers": ["0:16", "1:12"],
                "dtype": "f32",
                "chatTemplate": "c",
                "jinjaExplicit": "j",
            },
        )
    ),
    "quantities as numbers and as text": document(model("a", resources={"limits": {"gpu": 1, "memory": "8Gi"}})),
    "free-form pod fields": document(model("a", env=[{"name": "T", "valueFrom": {"secretKeyRef": {"key": "k"}}}])),
    "everything about pods": document(
        model(
            "a",
            nodeSelector={"example.com/gpu": "h200"},
            tolerations=[{"key": "spot", "operator": "Exists"}],
            affinity={"nodeAffinity": {}},
            runtimeClassName="nvidia",
            priorityClassName="high",
            envFrom=[{"secretRef": {"name": "proxy"}}],
            volumes=[{"name": "disk", "emptyDir": {}}],
            volumeMounts=[{"name": "disk", "mountPath": "/models"}],
            hubToken={"secretName": "hub"},
            cache={"sizeLimit": "80Gi"},
            resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "one-gpu", "request": "any"}],
            loading={"timeoutSeconds": 10},
            podTemplate={"metadata": {"annotations": {"a/b": "c"}}, "spec": {"dnsPolicy": "None"}},
        ),
        hubToken={"secretName": "hub", "key": "HF_TOKEN"},
        imagePullSecrets=[{"name": "registry"}],
        router={"nodeSelector": {"role": "front"}, "priorityClassName": "higher"},
    ),
    "a cache on a claim": document(model("a", cache={"persistentVolumeClaim": "hub-cache"})),
    "a cache on the node": document(model("a", cache={"hostPath": "/data/hub"})),
    "a range of replicas": document(
        model("a", scaling={"minReplicas": 2, "maxReplicas": 2, "idleSeconds": 900, "targetRequests": 1}),
        model("b", "org/b", scaling={"minReplicas": 0, "maxReplicas": 1}),
        model("c", "org/c", scaling={"minReplicas": 3}),
        residency={"maxLoaded": 1},
    ),
    "replicas that others choose": document(model("a", scaling={"autoscaler": "external", "minReplicas": 2})),
    "a name of 63 characters": document(model("a"), object_name="n" * 63),
    "every setting of the router": document(
        model("a"),
        router={
            "replicas": 1,
            "workers": 64,
            "resources": {"limits": {"cpu": 2}},
            "apiKeys": {"secretName": "chat.keys"},
            "tls": {"secretName": "chat-tls"},
            "waiting": {
                "maxRequests": 8,
                "maxRequestsPerModel": 8,
                "maxBytes": 0,
                "maxSeconds": 86400,
                "abandonedLoads": "finish",
            },
            "resumeStreams": False,
            "balance": "prefixHash",
            "cors": {"allowedOrigins": ["*", "https://chat.example.org:8443", "http://[::1]:3000"]},
            "accessLog": "off",
        },
    ),
    "every other kind": document(
        gguf("g", "org/g"),
        *({"name": kind, kind: {"modelId": f"org/{kind}"}} for kind in ("vision", "embedding", "diffusion", "speech")),
    ),
}

BAD = {
    "no source": (document({"name": "a"}), manifest.RULE_ONE_SOURCE),
    "two sources": (document(model("a", vision={"modelId": "org/b"})), manifest.RULE_ONE_SOURCE),
    "two equal model ids": (document(model("a"), model("b")), manifest.RULE_UNIQUE_IDS),
    "two equal aliases": (document(model("a", alias="x"), model("b", "org/b", alias="x")), manifest.RULE_UNIQUE_IDS),
    "equal ids of different kinds": (document(model("a", "org/g"), gguf("g", "org/g")), manifest.RULE_UNIQUE_IDS),
    "an alias that is another's model id": (
        document(model("a", alias="org/b"), model("b", "org/b", alias="y")),
        manifest.RULE_ALIAS_CLASH,
    ),
    "an alias that is its own and another's model id": (
        document(model("a", alias="org/a"), model("b", alias="y")),
        manifest.RULE_ALIAS_CLASH,
    ),
    "an alias that is two others' model id": (
        document(model("a", "org/a", alias="x"), model("b", "org/a", alias="y"), model("c", "org/c", alias="org/a")),
        manifest.RULE_ALIAS_CLASH,
    ),
    "the reserved alias": (document(model("a", alias="default")), manifest.RULE_RESERVED_ID),
    "an unknown default": (document(model("a"), defaultModel="org/c"), manifest.RULE_KNOWN_DEFAULT),
    "a default that is only a name": (document(model("a"), defaultModel="a"), manifest.RULE_KNOWN_DEFAULT),
    "two KV sizes": (
        document(model("a", engine={"pagedAttention": {"contextLen": 1, "memoryMb": 1}})),
        manifest.RULE_ONE_KV_SIZE,
    ),
    "two KV sizes for all": (
        document(model("a"), engine={"pagedAttention": {"memoryFraction": 0.5, "memoryMb": 1}}),
        manifest.RULE_ONE_KV_SIZE,
    ),
    "more waiting for one model than for all": (
        document(model("a"), router={"waiting": {"maxRequests": 8, "maxRequestsPerModel": 9}}),
        router_spec.RULE_WAITING_ROOM,
    ),
    "more bytes waiting for one model than for all": (
        document(model("a"), router={"waiting": {"maxBytes": 0, "maxBytesPerModel": 1}}),
        router_spec.RULE_WAITING_ROOM,
    ),
    "fewer replicas at most than at least": (
        document(model("a", scaling={"minReplicas": 3, "maxReplicas": 2})),
        scaling.RULE_REPLICAS,
    ),
    "fewer replicas at most than the default at least": (
        document(model("a"), model("b", "org/b", scaling={"minReplicas": 2, "maxReplicas": 1})),
        scaling.RULE_REPLICAS,
    ),
    "bounds for an autoscaler that is not asked": (
        document(model("a", scaling={"autoscaler": "external", "maxReplicas": 4})),
        scaling.RULE_EXTERNAL,
    ),
    "idleness for an autoscaler that is not asked": (
        document(model("a", scaling={"autoscaler": "external", "idleSeconds": 60})),
        scaling.RULE_EXTERNAL,
    ),
    "two caches": (
        document(model("a", cache={"hostPath": "/data", "sizeLimit": "1Gi"})),
        pod_settings.RULE_ONE_CACHE,
    ),
    "a claim of nothing": (document(model("a", resourceClaims=[{"name": "gpu"}])), pod_settings.RULE_ONE_CLAIM),
    "a claim of two things": (
        document(
            model(
                "a",
                resourceClaims=[{"name": "gpu", "resourceClaimName": "a", "resourceClaimTemplateName": "b"}],
            )
        ),
        pod_settings.RULE_ONE_CLAIM,
    ),
    "a name with a dot": (document(model("a"), object_name="a.b"), manifest.RULE_OBJECT_NAME),
    "a name of 64 characters": (document(model("a"), object_name="n" * 64), manifest.RULE_OBJECT_NAME),
}

REFUSED_IN_OTHER_WORDS = {
    "two equal names": (document(model("a"), model("a", "org/b")), "Duplicate value", manifest.RULE_UNIQUE_NAMES),
    "no model": (document(), "at least 1 item", "at least 1 item"),
    "65 models": (document(*(model(f"m{n}", f"org/{n}") for n in range(65))), "at most 64", "at most 64"),
    "a name that is no label": (document(model("A")), "spec.models[0].name", "spec.models.0.name"),
    "an unknown block size": (
        document(model("a", engine={"pagedAttention": {"blockSize": 12}})),
        "blockSize",
        "blockSize",
    ),
    "an unknown field": (document(model("a", replicas=3)), 'unknown field "spec.models[0].replicas"', "replicas"),
    "no router": (document(model("a"), router={"replicas": 0}), "spec.router.replicas", "spec.router.replicas"),
    "no secret's name": (
        document(model("a"), router={"apiKeys": {"secretName": "Keys"}}),
        "spec.router.apiKeys.secretName",
        "spec.router.apiKeys.secretName",
    ),
    "an origin with a path": (
        document(model("a"), router={"cors": {"allowedOrigins": ["https://example.org/chat"]}}),
        "spec.router.cors.allowedOrigins[0]",
        "spec.router.cors.allowedOrigins.0",
    ),
    "a bare off, which is false in YAML": (
        document(model("a"), router={"accessLog": False}),
        "spec.router.accessLog",
        "spec.router.accessLog",
    ),
    "no replica at most": (
        document(model("a", scaling={"maxReplicas": 0})),
        "spec.models[0].scaling.maxReplicas",
        "spec.models.0.scaling.maxReplicas",
    ),
    "a relative cache": (
        document(model("a", cache={"hostPath": "data"})),
        "spec.models[0].cache.hostPath",
        "spec.models.0.cache.hostPath",
    ),
    "a load without time": (
        document(model("a", loading={"timeoutSeconds": 0})),
        "spec.models[0].loading.timeoutSeconds",
        "spec.models.0.loading.timeoutSeconds",
    ),
    "nothing loaded at all": (
        document(model("a"), residency={"maxLoaded": 0}),
        "spec.residency.maxLoaded",
        "spec.residency.maxLoaded",
    ),
    "a token without its Secret": (document(model("a", hubToken={"key": "t"})), "secretName", "secretName"),
    "65 workers": (document(model("a"), router={"workers": 65}), "spec.router.workers", "spec.router.workers"),
    "a fraction of nothing": (
        document(model("a", engine={"pagedAttention": {"memoryFraction": 0}})),
        "memoryFraction",
        "memoryFraction",
    ),
}


def refusal_of_types(resource: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        MultiModel.model_validate(resource)
    return str(refused.value)


def apply(client: httpx.Client, resource: dict[str, Any]) -> httpx.Response:
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    return client.post("/apis/multimodel.dev/v1alpha1/namespaces/default/multimodels", json=resource, params=query)


def refusal_of_server(client: httpx.Client, resource: dict[str, Any]) -> str:
    response = apply(client, resource)
    assert response.is_client_error, response.text
    message: str = response.json()["message"]
    return message


@pytest.mark.parametrize("case", GOOD)
def test_the_types_take_what_is_good(case: str) -> None:
    MultiModel.model_validate(GOOD[case])


@pytest.mark.control_plane
@pytest.mark.parametrize("case", GOOD)
def test_the_api_server_takes_what_is_good(api_client: httpx.Client, case: str) -> None:
    assert apply(api_client, GOOD[case]).is_success


@pytest.mark.parametrize("case", BAD)
def test_the_types_refuse_with_the_words_of_the_rule(case: str) -> None:
    resource, words = BAD[case]
    assert words in refusal_of_types(resource)


@pytest.mark.control_plane
@pytest.mark.parametrize("case", BAD)
def test_the_api_server_refuses_with_the_words_of_the_rule(api_client: httpx.Client, case: str) -> None:
    resource, words = BAD[case]
    assert words in refusal_of_server(api_client, resource)


@pytest.mark.parametrize("case", REFUSED_IN_OTHER_WORDS)
def test_the_types_refuse_what_the_schema_forbids(case: str) -> None:
    resource, _, words = REFUSED_IN_OTHER_WORDS[case]
    assert words in refusal_of_types(resource)


@pytest.mark.control_plane
@pytest.mark.parametrize("case", REFUSED_IN_OTHER_WORDS)
def test_the_api_server_refuses_what_the_schema_forbids(api_client: httpx.Client, case: str) -> None:
    resource, words, _ = REFUSED_IN_OTHER_WORDS[case]
    assert words in refusal_of_server(api_client, resource)


@pytest.mark.control_plane
def test_sixty_four_long_models_are_within_the_cost_budget_and_quick(api_client: httpx.Client) -> None:
    claims = [{"name": f"c{n}", "resourceClaimName": "c"} for n in range(16)]
    scale = {"minReplicas": 1, "maxReplicas": 2}
    models = [
        gguf(f"m{n}", f"{'b' * 250}{n:03}", alias=f"{'a' * 250}{n:03}", resourceClaims=claims, scaling=scale)
        for n in range(64)
    ]
    resource = document(*models, defaultModel=models[-1]["alias"])
    MultiModel.model_validate(resource)
    assert apply(api_client, resource).is_success
    began = time.monotonic()
    assert apply(api_client, resource).is_success
    assert time.monotonic() - began < 5
