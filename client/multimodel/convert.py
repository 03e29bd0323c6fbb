"""The JSON configuration of mistral.rs's multi-model mode as a MultiModel: text in, value out, nothing touched.

A configuration is one object; each key is a label, each value holds one model specification under the name of its
variant, and settings of the model beside it. Whatever has no meaning here is reported, never silently dropped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_snake

from multimodel.labels import unique_labels
from multimodel.validation import Location, problems
from multimodel_api.manifest import Metadata, Model, MultiModel, MultiModelSpec

SUPPORTED_VARIANTS = {
    "Plain": "plain",
    "VisionPlain": "vision",
    "MultimodalPlain": "vision",
    "GGUF": "gguf",
    "Embedding": "embedding",
    "DiffusionPlain": "diffusion",
    "Speech": "speech",
}
"""The configuration's names of the model specifications, and the source kind that each becomes."""

UNSUPPORTED_VARIANTS = ("XLora", "Lora", "XLoraGGUF", "LoraGGUF", "GGML", "XLoraGGML", "LoraGGML", "Run", "Toml")

SOURCE_FIELDS = {
    "gguf": ("tok_model_id", "quantized_model_id", "quantized_filename"),
    "speech": ("model_id", "dac_model_id"),
}
"""Fields of a specification that a source takes over; every other source takes `model_id` alone."""

ENGINE_FIELDS = ("chat_template", "jinja_explicit", "num_device_layers")
"""Engine settings that stand beside the specification."""

SOURCE_ENGINE_FIELDS = ("dtype", "max_seq_len", "max_batch_size")
"""Engine settings that stand inside the specification."""

MODEL_FIELDS = ("alias", "in_situ_quant", *ENGINE_FIELDS)

_UQFF = "UQFF files are neither read nor written; the model's own weights are used"
_ISQ_DETAIL = "inSituQuant alone says how to quantise"
_MATFORMER = "a model is always loaded whole"
_IMAGE_LIMITS = "there is no limit on images to set"
REASONS = {
    "arch": "the architecture is read from the model's config.json",
    "tokenizer_json": "the tokenizer of the model itself is used",
    "topology": "layers are not placed on devices by hand",
    "hf_cache_path": "the Hub cache is where HF_HOME says; set it under the model's `env`",
    "write_uqff": _UQFF,
    "from_uqff": _UQFF,
    "organization": _ISQ_DETAIL,
    "imatrix": _ISQ_DETAIL,
    "calibration_file": _ISQ_DETAIL,
    "matformer_config_path": _MATFORMER,
    "matformer_slice_name": _MATFORMER,
    "max_edge": _IMAGE_LIMITS,
    "max_num_images": _IMAGE_LIMITS,
    "max_image_length": _IMAGE_LIMITS,
}
"""Why a known field of the configuration has no meaning here."""


class ConversionError(ValueError):
    """The configuration cannot be turned into a MultiModel; the message names the place, the value and the fix."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A field of the configuration that has no counterpart, and why."""

    label: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.label}: {self.field} is ignored: {self.reason}"


@dataclass(frozen=True, slots=True)
class Renamed:
    """A label that cannot name Kubernetes objects, and the model name that stands for it."""

    label: str
    name: str

    def __str__(self) -> str:
        return f"{self.label}: the label becomes the model name '{self.name}', which must be a DNS label"


@dataclass(frozen=True, slots=True)
class Conversion:
    """The MultiModel that a configuration stands for, and what was lost or changed on the way."""

    resource: MultiModel
    warnings: tuple[Ignored | Renamed, ...]


def convert(document: str, *, name: str, default_model_id: str | None = None) -> Conversion:
    """Return the MultiModel called `name` that a JSON configuration describes, models in the configuration's order.

    `default_model_id` is the alias or model id of the default model; without it the first model is the default.

    Raises:
        ConversionError: the document is no such configuration, or holds what is not supported.
    """
    entries = _parsed(document)
    names = unique_labels(entries)
    warnings: list[Ignored | Renamed] = [Renamed(label, names[label]) for label in entries if names[label] != label]
    models = []
    for label, entry in entries.items():
        model, ignored = _model(label, names[label], entry)
        models.append(model)
        warnings += ignored
    _check_default(default_model_id, models, labels=entries)
    return Conversion(_resource(name, default_model_id, models), tuple(warnings))


def _resource(name: str, default_model_id: str | None, models: list[Model]) -> MultiModel:
    try:
        spec = MultiModelSpec(default_model=default_model_id, models=models)
        return MultiModel(metadata=Metadata(name=name), spec=spec)
    except ValidationError as error:
        raise ConversionError("\n".join(text for _, text in problems(error, MultiModelSpec))) from error


def _parsed(document: str) -> dict[str, object]:
    if not document.strip():
        raise ConversionError('the configuration is empty; write an object like {"label": {"Plain": {"model_id": …}}}')
    try:
        entries = json.loads(document, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ConversionError(f"not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(entries, dict):
        raise ConversionError(
            f'expected an object keyed by label, found {_json_type(entries)}; write {{"label": {{"Plain": {{…}}}}}}'
        )
    if not entries:
        raise ConversionError('the configuration names no model; add one: {"label": {"Plain": {"model_id": …}}}')
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ConversionError(f'the key "{key}" appears twice in one object; rename or remove one of the two')
        result[key] = value
    return result


def _model(label: str, name: str, entry: object) -> tuple[Model, list[Ignored]]:
    if not isinstance(entry, dict):
        raise ConversionError(f'{label}: expected an object like {{"Plain": {{…}}}}, found {_json_type(entry)}')
    variant = _variant(label, entry)
    source = entry[variant]
    if not isinstance(source, dict):
        raise ConversionError(f"{label}: {variant}: expected an object of fields, found {_json_type(source)}")
    kind = SUPPORTED_VARIANTS[variant]
    kept = SOURCE_FIELDS.get(kind, ("model_id",))
    fields = {
        "name": name,
        **_given(entry, ("alias", "in_situ_quant")),
        kind: _given(source, kept),
        "engine": _given(entry, ENGINE_FIELDS) | _given(source, SOURCE_ENGINE_FIELDS) | _dtype(source),
    }
    try:
        model = Model.model_validate(fields)
    except ValidationError as error:
        written = [f"{label}: {_as_written(place, kind, variant)}{text}" for place, text in problems(error, Model)]
        raise ConversionError("\n".join(written)) from error
    lost_beside = _ignored(label, entry, known=(variant, *MODEL_FIELDS))
    lost_inside = _ignored(label, source, known=(*kept, *SOURCE_ENGINE_FIELDS), inside=f"{variant}.")
    return model, lost_beside + lost_inside


def _as_written(place: Location, kind: str, variant: str) -> str:
    """Return a place of the model as the configuration writes it, followed by a colon."""
    if place[:1] == ("engine",) and to_snake(str(place[1])) in SOURCE_ENGINE_FIELDS:
        place = (kind, *place[1:])
    parts = [variant if part == kind else to_snake(str(part)) for part in place if part != "engine"]
    return f"{'.'.join(parts)}: " if parts else ""


def _variant(label: str, entry: Mapping[str, object]) -> str:
    """Return the one supported variant of an entry."""
    present = [key for key in entry if key in SUPPORTED_VARIANTS]
    if len(present) > 1:
        raise ConversionError(f"{label}: has {' and '.join(present)}; a model has exactly one specification")
    if present:
        return present[0]
    supported = ", ".join(SUPPORTED_VARIANTS)
    by_lower_case = {variant.lower(): variant for variant in SUPPORTED_VARIANTS}
    for key in entry:
        if key in UNSUPPORTED_VARIANTS:
            raise ConversionError(f"{label}: {key} models are not supported; supported are: {supported}")
        if key.lower() in by_lower_case:
            raise ConversionError(f"{label}: unknown variant {key}; did you mean {by_lower_case[key.lower()]}?")
    found = ", ".join(entry) or "nothing"
    raise ConversionError(f"{label}: found {found}, but no model specification; add one of: {supported}")


def _dtype(source: Mapping[str, object]) -> dict[str, object]:
    dtype = source.get("dtype")
    return {} if dtype is None else {"dtype": dtype.lower() if isinstance(dtype, str) else dtype}


def _given(fields: Mapping[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _ignored(label: str, fields: Mapping[str, object], *, known: tuple[str, ...], inside: str = "") -> list[Ignored]:
    return [
        Ignored(label, f"{inside}{field}", REASONS.get(field, "no such field is known"))
        for field, value in fields.items()
        if field not in known and value is not None
    ]


def _check_default(default_model_id: str | None, models: list[Model], *, labels: Mapping[str, object]) -> None:
    ids = [identifier for model in models for identifier in (model.alias, model.canonical_id) if identifier]
    if default_model_id is None or default_model_id in ids:
        return
    hint = " (it is a label; labels are not ids)" if default_model_id in labels else ""
    raise ConversionError(f"no model has the id '{default_model_id}'{hint}; choose one of: {', '.join(ids)}")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
