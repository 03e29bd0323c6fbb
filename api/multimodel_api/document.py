"""What the parts of a manifest are made of: the base of all its types, rules for CEL, names and quantities."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
Quantity = Annotated[int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]
Quantities = dict[str, Quantity]
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]


def rules(*sentences: tuple[str, str]) -> dict[str, Any]:
    """Return CEL rules with their messages, for a type's `json_schema_extra`."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in sentences]}


def list_map(key: str) -> dict[str, Any]:
    """Return what makes a list a map by one of its items' fields, for a field's `json_schema_extra`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class Document(BaseModel):
    """Base of everything in a manifest: camelCase on the wire, unknown fields refused, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Resources(Document):
    """Kubernetes resource requests and limits of a container."""

    limits: Quantities = Field({}, description="Most the container may use, for example `nvidia.com/gpu: 1`.")
    requests: Quantities = Field({}, description="What the container is guaranteed; the scheduler counts it.")
