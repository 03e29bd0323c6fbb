"""How a model's pods are made: what Kubernetes gives them, the Hub's token and cache, and how long a load may take."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from multimodel_api.document import DnsLabel, Document, FreeForm, ObjectName, Quantity, Resources, list_map, rules
from multimodel_api.placement import LabelValue, Placement

LOAD_SECONDS = 3600
"""How long a load may take where the manifest does not say."""

RULE_ONE_CACHE = "at most one of persistentVolumeClaim, hostPath, sizeLimit may be set"
RULE_ONE_CLAIM = "exactly one of resourceClaimName, resourceClaimTemplateName must be set"

CACHES = ("persistent_volume_claim", "host_path", "size_limit")
_CEL_ONE_CACHE = (
    "[has(self.persistentVolumeClaim), has(self.hostPath), has(self.sizeLimit)].filter(present, present).size() <= 1"
)
_CEL_ONE_CLAIM = "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)"


class HubToken(Document):
    """Where the token for the Hub is."""

    secret_name: ObjectName = Field(description="Secret in this namespace; no model starts before it exists.")
    key: str = Field(
        "token", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="Entry of the Secret."
    )


class Cache(Document):
    """Where files from the Hub are kept; without any of the three, as long as the pod lives."""

    model_config = ConfigDict(json_schema_extra=rules((_CEL_ONE_CACHE, RULE_ONE_CACHE)))

    persistent_volume_claim: ObjectName | None = Field(
        None, description="PersistentVolumeClaim in this namespace; with several replicas one that many pods may mount."
    )
    host_path: Annotated[str, Field(min_length=2, max_length=4096, pattern=r"^/")] | None = Field(
        None,
        description="Folder on each node that the user 65532 may write. A namespace that enforces a pod security "
        "standard refuses it.",
    )
    size_limit: Quantity | None = Field(None, description="Most bytes of a cache that ends with its pod, such as 80Gi.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(getattr(self, place) is not None for place in CACHES) > 1:
            raise ValueError(RULE_ONE_CACHE)
        return self


class ResourceClaim(Document):
    """A device of dynamic resource allocation that the model server gets."""

    model_config = ConfigDict(json_schema_extra=rules((_CEL_ONE_CLAIM, RULE_ONE_CLAIM)))

    name: DnsLabel = Field(description="Name of the claim within the pod.")
    resource_claim_name: ObjectName | None = Field(None, description="ResourceClaim that the pods share.")
    resource_claim_template_name: ObjectName | None = Field(
        None, description="ResourceClaimTemplate that each pod gets a claim of its own from."
    )
    request: DnsLabel | None = Field(None, description="The one request of the claim that is meant; all when unset.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.resource_claim_name is None) == (self.resource_claim_template_name is None):
            raise ValueError(RULE_ONE_CLAIM)
        return self


class Loading(Document):
    """Bounds of a load."""

    timeout_seconds: int = Field(
        LOAD_SECONDS,
        ge=10,
        le=86400,
        description="Longest time from the start of a server until its model is loaded and warm; then it is started "
        "again, and the model has the reason LoadTimeout.",
    )


class PodMetadata(Document):
    """What is added to the metadata of pods."""

    labels: dict[str, LabelValue] = Field(
        {}, max_length=64, description="Labels of the pods; those that select the pods stay as they are."
    )
    annotations: dict[str, str] = Field({}, max_length=64, description="Annotations of the pods.")


class PodTemplate(Document):
    """A patch of the template of a model's pods."""

    metadata: PodMetadata = Field(PodMetadata(), description="Labels and annotations to add.")
    spec: FreeForm = Field(
        {},
        description="Fields of a pod's spec, merged last: objects key by key, null removes. Containers are merged by "
        "name (the model server's is modelserver); volumes, env and mounts take the place of those of the same name "
        "or path; other lists take the place of ours. What makes the pods meet the restricted security standard stays.",
    )


class PodSettings(Placement):
    """What a model's pods are, beside the model server itself."""

    resources: Resources = Field(
        Resources(),
        description="Resources of the model server's container. Limits of nvidia.com/… bring a toleration of the "
        "taint nvidia.com/gpu along.",
    )
    resource_claims: list[ResourceClaim] = Field(
        [],
        max_length=16,
        description="Devices of dynamic resource allocation, for the pod and its model server.",
        json_schema_extra=list_map("name"),
    )
    env: list[FreeForm] = Field([], max_length=64, description="Environment of the container, as in a pod.")
    env_from: list[FreeForm] = Field(
        [], max_length=16, description="Secrets and ConfigMaps that are the container's environment, as in a pod."
    )
    volumes: list[FreeForm] = Field([], max_length=64, description="Volumes of the pod, as in a pod.")
    volume_mounts: list[FreeForm] = Field([], max_length=64, description="Volume mounts of the container, as in a pod.")
    hub_token: HubToken | None = Field(
        None, description="Token for repositories of the Hub that ask for one; spec.hubToken when unset."
    )
    cache: Cache = Field(Cache(), description="Where files from the Hub are kept, so that the next load is quick.")
    loading: Loading = Field(Loading(), description="How long a load may take.")
    pod_template: PodTemplate = Field(
        PodTemplate(), description="A patch of the pods' template, for what no other field says."
    )
