"""The CustomResourceDefinition is a structural schema that explains itself, and the files hold what the types say."""

import json
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from multimodel_api.crd import custom_resource_definition, structural_schema
from multimodel_testbed.control_plane import ControlPlane

ROOT = Path(__file__).parents[2]
COPIES = ("crds/multimodel.dev_multimodels.yaml", "charts/multimodel/files/crd.yaml")


MULTIMODEL = {
    "apiVersion": "multimodel.dev/v1alpha1",
    "kind": "MultiModel",
    "spec": {"models": [{"name": "a", "plain": {"modelId": "org/a"}}]},
}


def root_schema() -> dict[str, Any]:
    (version,) = custom_resource_definition()["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


@pytest.mark.parametrize("copy", COPIES)
def test_the_file_is_what_the_types_say(copy: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "multimodel_api.crd"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert (ROOT / copy).read_text() == printed, "run: make crds"


def test_every_field_has_a_description_for_kubectl_explain() -> None:
    fields = [(path, node) for path, node in nodes(root_schema()) if path.startswith((".spec", ".status"))]
    assert [path for path, node in fields if "description" not in node and not path.endswith("[]")] == []


def test_no_default_is_empty() -> None:
    defaults = {path: node["default"] for path, node in nodes(root_schema()) if "default" in node}
    assert {path: value for path, value in defaults.items() if value in ([], {}, None)} == {}
    assert defaults[".spec.router"] == {"replicas": 2}
    assert defaults[".spec.models[].scaling"] == {"minReplicas": 1, "targetRequests": 16, "autoscaler": "builtin"}
    assert defaults[".spec.models[].loading"] == {"timeoutSeconds": 3600}


def test_every_list_and_string_under_a_rule_is_bounded() -> None:
    """Without bounds the API server counts the cost of a rule as unlimited and refuses the CRD."""
    models = root_schema()["properties"]["spec"]["properties"]["models"]
    assert models["maxItems"] == 64
    assert models["items"]["properties"]["alias"]["maxLength"] == 253


def test_optional_fields_are_plain_and_not_required() -> None:
    class Part(BaseModel):
        size: int | None = Field(None, gt=0)

    class Whole(BaseModel):
        part: Part | None = None
        name: str

    schema = structural_schema(Whole.model_json_schema())
    assert schema["required"] == ["name"]
    size = schema["properties"]["part"]["properties"]["size"]
    assert size == {"type": "integer", "minimum": 0, "exclusiveMinimum": True}


def test_a_union_of_two_types_is_refused() -> None:
    class Mixed(BaseModel):
        value: int | list[str]

    with pytest.raises(ValueError, match="union of 2 types"):
        structural_schema(Mixed.model_json_schema())


def test_a_union_of_lists_of_words_is_one_list() -> None:
    class First(StrEnum):
        A = "a"

    class Second(StrEnum):
        B = "b"

    class Either(BaseModel):
        word: First | Second | None = None

    assert structural_schema(Either.model_json_schema())["properties"]["word"] == {"type": "string", "enum": ["a", "b"]}


@pytest.mark.control_plane
def test_kubectl_explains_and_lists(api_server: ControlPlane) -> None:
    explained = api_server.kubectl("explain", "mm.spec.models.scaling.idleSeconds")
    assert "Unload the model when it has had no request for so long" in " ".join(explained.split())
    models = api_server.kubectl("explain", "mm.spec.models")
    assert "The models that the endpoint serves" in models
    assert "<no description>" not in models
    manifest = MULTIMODEL | {"metadata": {"name": "listed", "namespace": "default"}}
    api_server.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
    listed = api_server.kubectl("get", "mm", "listed", "--output=wide")
    assert listed.split("\n")[0].split() == [
        "NAME",
        "READY",
        "LOADED",
        "DEFAULT",
        "URL",
        "AGE",
        "MODELS",
        "REASON",
        "MESSAGE",
    ]
    api_server.kubectl("delete", "mm", "listed")
