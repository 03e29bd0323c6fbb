"""JSON schemas of all kinds that an API server knows, made of what it publishes itself, as kubeconform wants them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodel_testbed.control_plane import ControlPlane

LOCATION = "{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json"
"""The name of a kind's file, as a template of kubeconform's; a kind of the core group has its version twice."""

_KIND = "x-kubernetes-group-version-kind"
_OPEN = "x-kubernetes-preserve-unknown-fields"


def write(plane: ControlPlane, folder: Path) -> str:
    """Write a file for each kind, in which unknown fields are errors, and return where they are, for kubeconform."""
    index = json.loads(plane.kubectl("get", "--raw", "/openapi/v3"))
    for path, document in index["paths"].items():
        if path == "api/v1" or path.startswith("apis/"):
            _write_group(json.loads(plane.kubectl("get", "--raw", document["serverRelativeURL"])), folder)
    return f"{folder}/{LOCATION}"


def _write_group(document: dict[str, Any], folder: Path) -> None:
    schemas: dict[str, Any] = document.get("components", {}).get("schemas", {})
    components = {"schemas": {name: _closed(schema) for name, schema in schemas.items()}}
    for name, kind in _kinds(schemas):
        whole = {"$ref": f"#/components/schemas/{name}", "components": components}
        (folder / _file_name(**kind)).write_text(json.dumps(whole))


def _kinds(schemas: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the schemas of kinds; one that belongs to several is that of an option, which nobody applies."""
    for name, schema in schemas.items():
        kinds = schema.get(_KIND, [])
        if len(kinds) == 1:
            yield name, kinds[0]


def _file_name(group: str, version: str, kind: str) -> str:
    return f"{kind.lower()}-{group or version}-{version}.json"


def _closed(schema: Any) -> Any:
    """Return a schema that takes no other properties than those it lists, unless it says so."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if "properties" in closed and "additionalProperties" not in closed and not closed.get(_OPEN):
        closed["additionalProperties"] = False
    return closed
