"""Writes the CustomResourceDefinition from the manifest types: `python -m multimodel_api.crd > crds/…yaml`."""

import itertools
import sys
from typing import Any

import yaml

from multimodel_api import names
from multimodel_api.document import DNS_LABEL
from multimodel_api.manifest import RULE_OBJECT_NAME, MultiModelSpec
from multimodel_api.status import MultiModelStatus

PRINTER_COLUMNS = (
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Loaded", "type": "string", "jsonPath": ".status.loaded"},
    {"name": "Default", "type": "string", "jsonPath": ".status.defaultModel"},
    {"name": "URL", "type": "string", "jsonPath": ".status.url"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Models", "type": "string", "priority": 1, "jsonPath": ".status.summary"},
    {"name": "Reason", "type": "string", "priority": 1, "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "Message", "type": "string", "priority": 1, "jsonPath": '.status.conditions[?(@.type=="Ready")].message'},
)

_KEPT = {
    *("type", "properties", "required", "items", "additionalProperties", "default", "description", "enum", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern"),
}


def structural_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema of pydantic's as a Kubernetes structural schema: no references, no unions, no titles."""
    definitions = schema.get("$defs", {})

    def convert(node: dict[str, Any]) -> dict[str, Any]:
        node = dict(node)
        if "$ref" in node:
            node = definitions[node.pop("$ref").rsplit("/", 1)[1]] | node
        if "anyOf" in node and "x-kubernetes-int-or-string" not in node:  # int | str carries a marker of its own
            return convert(_without_union(node, definitions))
        if "x-kubernetes-int-or-string" in node:
            return {key: node[key] for key in ("description", "x-kubernetes-int-or-string") if key in node}
        kept = {key: value for key, value in node.items() if key in _KEPT or key.startswith("x-kubernetes-")}
        if kept.get("additionalProperties") in (False, True):
            del kept["additionalProperties"]
        kept["default"] = _without_empty(kept.get("default"))
        if not kept["default"] and not isinstance(kept["default"], int | str):
            del kept["default"]  # empty defaults would only clutter every stored object
        return _with_integer_bounds(_converted_children(kept, convert))

    return convert(schema)


def _without_union(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Fold `X | None` into X, which a structural schema leaves out of `required`, and lists of words into one."""
    arms = [arm for arm in node.pop("anyOf") if arm.get("type") != "null"]
    words = [definitions.get(arm.get("$ref", "").rsplit("/", 1)[-1], arm).get("enum", []) for arm in arms]
    if len(arms) > 1 and all(words):
        return {"type": "string", "enum": sorted(itertools.chain(*words))} | node
    if len(arms) != 1:
        raise ValueError(f"a union of {len(arms)} types has no structural schema: {arms}")
    folded: dict[str, Any] = arms[0] | node
    return folded


def _without_empty(default: Any) -> Any:
    if isinstance(default, dict):
        kept = {key: _without_empty(value) for key, value in default.items()}
        return {key: value for key, value in kept.items() if value not in (None, [], {})}
    return default


def _converted_children(node: dict[str, Any], convert: Any) -> dict[str, Any]:
    if "properties" in node:
        node["properties"] = {name: convert(child) for name, child in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in node:
            node[key] = convert(node[key])
    return node


def _with_integer_bounds(node: dict[str, Any]) -> dict[str, Any]:
    """Rewrite JSON Schema 2020's numeric exclusive bounds as OpenAPI 3.0's boolean ones."""
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if flag in node:
            node[bound] = node.pop(flag)
            node[flag] = True
    return node


def custom_resource_definition() -> dict[str, Any]:
    """Return the CRD as the API server takes it."""
    spec = structural_schema(MultiModelSpec.model_json_schema(by_alias=True))
    status = structural_schema(MultiModelStatus.model_json_schema(by_alias=True))
    root = {
        "type": "object",
        "description": "Several language models behind one OpenAI endpoint.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "required": ["spec"],
        "x-kubernetes-validations": [
            {"rule": f"self.metadata.name.matches('{DNS_LABEL}')", "message": RULE_OBJECT_NAME}
        ],
    }
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": list(PRINTER_COLUMNS),
        "schema": {"openAPIV3Schema": root},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": ["all"],
            },
            "versions": [version],
        },
    }


class _PlainDumper(yaml.SafeDumper):
    """Writes shared values out each time: anchors would only puzzle readers of a CRD."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (PyYAML's hook)
        return True


def main() -> None:
    """Print the CRD as YAML."""
    sys.stdout.write("# Generated by `make crds` from multimodel_api.manifest; do not edit.\n")
    yaml.dump(custom_resource_definition(), sys.stdout, Dumper=_PlainDumper, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
