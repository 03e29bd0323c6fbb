"""The MultiModel resource: the only source of the CRD, of `multimodel up`'s file format and of the launch command.

Field names are camelCase on the wire and snake_case here. Rules that CEL can check carry one sentence, which
`kubectl apply` and the Python validators both answer with.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from multimodel_api import names
from multimodel_api.document import DNS_LABEL, DnsLabel, Document, list_map, rules
from multimodel_api.placement import SecretName
from multimodel_api.pod_settings import HubToken, PodSettings
from multimodel_api.router_spec import Balance, RouterSpec
from multimodel_api.scaling import Residency, Scaling

MAX_MODELS = 64
MAX_ID = 253

DeviceLayers = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+:[1-9][0-9]*$")]
ModelId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]

SOURCE_KINDS = ("plain", "vision", "gguf", "embedding", "diffusion", "speech")
LOADABLE_KINDS = ("plain",)
"""The source kinds that the model server can load."""

RULE_ONE_SOURCE = f"exactly one source must be set: {', '.join(SOURCE_KINDS)}"
RULE_ONE_KV_SIZE = "at most one of contextLen, memoryMb, memoryFraction may be set"
RULE_UNIQUE_NAMES = "model names must be unique"
RULE_UNIQUE_IDS = "two models have the same API id (the alias, or without one the model id): give each its own alias"
RULE_ALIAS_CLASH = "an alias must not be the model id of another model"
RULE_RESERVED_ID = f"the id '{names.DEFAULT_MODEL_ID}' is reserved for the default model: choose another alias"
RULE_OBJECT_NAME = "metadata.name must be a DNS label: at most 63 of a-z, 0-9 and '-', no '-' at either end"
RULE_KNOWN_DEFAULT = "defaultModel must be the alias or the model id of one of the models"

KV_SIZES = ("context_len", "memory_mb", "memory_fraction")


def _cel_count_set(fields: Iterable[str]) -> str:
    return f"[{', '.join(f'has(self.{to_camel(field)})' for field in fields)}].filter(present, present).size()"


_CEL_ONE_SOURCE = f"{_cel_count_set(SOURCE_KINDS)} == 1"
_CEL_ONE_KV_SIZE = f"{_cel_count_set(KV_SIZES)} <= 1"


def _cel_canonical(model: str) -> str:
    expression = f"has({model}.gguf) ? {model}.gguf.quantizedModelId : ''"
    for kind in SOURCE_KINDS:
        if kind != "gguf":
            expression = f"has({model}.{kind}) ? {model}.{kind}.modelId : ({expression})"
    return f"({expression})"


def _cel_api_id(model: str) -> str:
    return f"(has({model}.alias) ? {model}.alias : {_cel_canonical(model)})"


# A list of one list names the ids, so that they are made once and not for every pair of models.
_CEL_UNIQUE_IDS = (
    f"[self.models.map(m, {_cel_api_id('m')})].all(ids, ids.all(id, ids.indexOf(id) == ids.lastIndexOf(id)))"
)
_CEL_ALIAS_CLASH = (
    f"[self.models.map(m, {_cel_canonical('m')})].all(ids, self.models.all(m, !has(m.alias) || "
    f"(ids.indexOf(m.alias) == ids.lastIndexOf(m.alias) && (!(m.alias in ids) || {_cel_canonical('m')} == m.alias))))"
)
_CEL_KNOWN_DEFAULT = (
    "!has(self.defaultModel) || self.models.exists(m, "
    f"(has(m.alias) && m.alias == self.defaultModel) || {_cel_canonical('m')} == self.defaultModel)"
)


class HubSource(Document):
    """A model in Hugging Face layout: a Hub repository or a folder that the server can read."""

    model_id: ModelId = Field(description="Hub repository (`org/name`) or path of a folder inside the pod.")
    revision: str | None = Field(None, max_length=MAX_ID, description="Branch, tag or commit of the Hub repository.")


class GgufSource(Document):
    """A quantised model in one or more GGUF files."""

    tok_model_id: ModelId | None = Field(None, description="Repository or folder that holds the tokenizer.")
    quantized_model_id: ModelId = Field(description="Repository or folder that holds the GGUF files.")
    quantized_filename: str = Field(min_length=1, max_length=1024, description="File name; several joined by ';'.")


class SpeechSource(HubSource):
    """A speech model with its audio codec."""

    dac_model_id: ModelId | None = Field(None, description="Repository of the audio codec.")


class PagedAttention(Document):
    """Size and shape of the KV cache; at most one of the three sizes."""

    model_config = ConfigDict(json_schema_extra=rules((_CEL_ONE_KV_SIZE, RULE_ONE_KV_SIZE)))

    mode: Literal["auto", "on", "off"] | None = Field(
        None,
        description="'off' computes equal lengths together and reserves whole contexts; auto is on. "
        "Quote it: YAML reads a bare on or off as a boolean.",
    )
    context_len: int | None = Field(None, ge=1, description="Size of the KV cache in tokens.")
    memory_mb: int | None = Field(None, ge=1, description="Size of the KV cache in MiB.")
    memory_fraction: float | None = Field(
        None, gt=0, le=1, description="Size of the KV cache as a fraction of the device's memory; 0.9 without any size."
    )
    block_size: Literal[8, 16, 32] | None = Field(None, description="Tokens in a KV block; 16 when unset.")
    cache_type: Literal["auto", "f8e4m3"] | None = Field(
        None,
        description="Element type of the KV cache; auto takes that of the activations, f8e4m3 half of bf16's room.",
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if sum(getattr(self, size) is not None for size in KV_SIZES) > 1:
            raise ValueError(RULE_ONE_KV_SIZE)
        return self


class EngineSettings(Document):
    """Settings of a model's engine; an unset field takes `spec.engine`'s value, then the server's default."""

    max_seqs: int | None = Field(None, ge=1, le=4096, description="Most sequences running at once; 32 when unset.")
    max_batched_tokens: int | None = Field(None, ge=16, description="Token budget of one step; 4096 when unset.")
    paged_attention: PagedAttention | None = Field(None, description="Size and shape of the KV cache.")
    prefix_cache_n: int | None = Field(
        None,
        ge=0,
        description="0 shares no prefixes; 16 when unset. Without paged attention, the number of texts kept.",
    )
    no_kv_cache: bool | None = Field(
        None, description="Compute the whole text again for each token, and share no prefixes."
    )
    max_seq_len: int | None = Field(
        None, ge=1, description="Longest prompt to place a model's layers for; it limits nothing. 4096 when unset."
    )
    max_batch_size: int | None = Field(
        None, ge=1, description="Largest batch to place a model's layers for; it limits nothing. 1 when unset."
    )
    num_device_layers: list[DeviceLayers] | None = Field(
        None, max_length=64, description="Layers on each device as DEVICE:LAYERS; a model takes one device for now."
    )
    dtype: Literal["auto", "bf16", "f16", "f32"] | None = Field(
        None, description="Arithmetic of weights and activations; auto takes the checkpoint's."
    )
    chat_template: str | None = Field(None, max_length=65536, description="Chat template text, or path of a file.")
    jinja_explicit: str | None = Field(None, max_length=1024, description="Path of a Jinja file that wins over all.")

    def over(self, defaults: "EngineSettings") -> "EngineSettings":
        """Return these settings with unset fields taken from `defaults`."""
        set_here = {field: getattr(self, field) for field in self.model_fields_set if getattr(self, field) is not None}
        return defaults.model_copy(update=set_here)


class Model(PodSettings):
    """One model: exactly one source, and how to run it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (_CEL_ONE_SOURCE, RULE_ONE_SOURCE),
            (f"!has(self.alias) || self.alias != '{names.DEFAULT_MODEL_ID}'", RULE_RESERVED_ID),
        )
    )

    name: DnsLabel = Field(description="Label that names the child objects; never an API id.")
    alias: ModelId | None = Field(None, description="API id of the model; without it the model id is the API id.")
    plain: HubSource | None = Field(None, description="A text model in Hugging Face layout.")
    vision: HubSource | None = Field(None, description="A vision language model in Hugging Face layout.")
    gguf: GgufSource | None = Field(None, description="A text model in one or more GGUF files.")
    embedding: HubSource | None = Field(None, description="An embedding model in Hugging Face layout.")
    diffusion: HubSource | None = Field(None, description="An image model in Hugging Face layout.")
    speech: SpeechSource | None = Field(None, description="A speech model with its audio codec.")
    in_situ_quant: str | None = Field(None, max_length=16, description="Quantise while loading, for example Q4K.")
    engine: EngineSettings = Field(
        EngineSettings(), description="Engine settings of this model; an unset one takes spec.engine's value."
    )
    scaling: Scaling = Field(Scaling(), description="How many replicas the model has.")
    balance: Balance | None = Field(
        None, description="How a replica of this model is chosen; spec.router.balance when unset."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in SOURCE_KINDS) != 1:
            raise ValueError(RULE_ONE_SOURCE)
        if self.alias == names.DEFAULT_MODEL_ID:
            raise ValueError(RULE_RESERVED_ID)
        return self

    @property
    def kind(self) -> str:
        """Which of the source kinds is set."""
        return next(kind for kind in SOURCE_KINDS if getattr(self, kind) is not None)

    @property
    def canonical_id(self) -> str:
        """The pipeline name: the model id, for GGUF the quantised model id."""
        source: HubSource | GgufSource = getattr(self, self.kind)
        return source.quantized_model_id if isinstance(source, GgufSource) else source.model_id

    @property
    def api_id(self) -> str:
        """The id that clients see: the alias, without one the canonical id."""
        return self.alias or self.canonical_id

    @property
    def loadable(self) -> bool:
        """Whether the model server can load this kind of source."""
        return self.kind in LOADABLE_KINDS


class MultiModelSpec(Document):
    """What should run: the models, the default one, defaults for their engines, and the router."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (_CEL_UNIQUE_IDS, RULE_UNIQUE_IDS),
            (_CEL_ALIAS_CLASH, RULE_ALIAS_CLASH),
            (_CEL_KNOWN_DEFAULT, RULE_KNOWN_DEFAULT),
        )
    )

    default_model: ModelId | None = Field(
        None, description="Alias or model id of the default model; the first of the list when unset."
    )
    models: Annotated[
        list[Model],
        Field(
            min_length=1,
            max_length=MAX_MODELS,
            description="The models that the endpoint serves, in the order of `/v1/models`.",
            json_schema_extra=list_map("name"),
        ),
    ]
    engine: EngineSettings = Field(EngineSettings(), description="Engine settings for every model that sets no own.")
    hub_token: HubToken | None = Field(None, description="Token for the Hub of every model that names no own.")
    image_pull_secrets: list[SecretName] = Field(
        [],
        max_length=16,
        description="Secrets to pull the images of all pods with, the router's too.",
        json_schema_extra=list_map("name"),
    )
    residency: Residency = Field(Residency(), description="How many models may be loaded at once.")
    router: RouterSpec = Field(RouterSpec(), description="The router: its pods, and how it treats requests.")

    @model_validator(mode="after")
    def _consistent_ids(self) -> Self:
        if _repeats(model.name for model in self.models):
            raise ValueError(RULE_UNIQUE_NAMES)
        if _repeats(model.api_id for model in self.models):
            raise ValueError(RULE_UNIQUE_IDS)
        if any(a.alias == b.canonical_id for a in self.models for b in self.models if a is not b):
            raise ValueError(RULE_ALIAS_CLASH)
        if self.default_model and not any(self.default_model in (m.alias, m.canonical_id) for m in self.models):
            raise ValueError(RULE_KNOWN_DEFAULT)
        return self

    def engine_of(self, model: Model) -> EngineSettings:
        """Return a model's engine settings with `spec.engine`'s where it sets none."""
        return model.engine.over(self.engine)

    def hub_token_of(self, model: Model) -> HubToken | None:
        """Return where a model's token for the Hub is: its own, else `spec.hubToken`."""
        return model.hub_token or self.hub_token

    @property
    def default(self) -> Model:
        """The default model: the one named, by alias first, else the first of the list."""
        wanted = self.default_model
        by_id = [model for model in self.models if model.api_id == wanted]
        by_canonical_id = [model for model in self.models if model.canonical_id == wanted]
        return (by_id + by_canonical_id + list(self.models))[0]


def _repeats(values: Iterable[str]) -> bool:
    return any(count > 1 for count in Counter(values).values())


class Metadata(BaseModel):
    """The part of an object's metadata that we read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    namespace: str | None = None

    @model_validator(mode="after")
    def _label(self) -> Self:
        if not re.fullmatch(DNS_LABEL, self.name):
            raise ValueError(RULE_OBJECT_NAME)
        return self


class MultiModel(BaseModel):
    """The whole resource, as a manifest file or the API server gives it."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    api_version: Literal["multimodel.dev/v1alpha1"] = Field("multimodel.dev/v1alpha1", alias="apiVersion")
    kind: Literal["MultiModel"] = "MultiModel"
    metadata: Metadata
    spec: MultiModelSpec
