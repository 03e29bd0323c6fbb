"""`config.json` of a Hugging Face model folder, parsed once into types."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
from multimodel_server.layers.rotary import Llama3Scaling

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a decoder: all that its composition depends on."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    dtype: str


def decoder_config(fields: "Fields") -> DecoderConfig:
    """Return the shape that a configuration file describes.

    Raises:
        LoadError: BadConfiguration or BadQuantization, naming the file and the field.
    """
    _refuse_unsupported(fields)
    hidden_size, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    theta, scaling = _rope(fields)
    config = DecoderConfig(
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.count("intermediate_size"),
        num_layers=fields.count("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.count("num_key_value_heads", default=num_heads),
        head_dim=fields.count("head_dim", default=hidden_size // num_heads),
        max_position_embeddings=fields.count("max_position_embeddings"),
        rms_norm_eps=fields.positive("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        dtype=fields.text("dtype", default=fields.text("torch_dtype", default="float32")),
    )
    if config.num_heads % config.num_kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads, {config.num_heads}")
    if config.head_dim % 2:
        raise fields.error("head_dim", "must be even")
    return config


class Fields:
    """One JSON object of a file; every complaint names the file and the field."""

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source = source
        self.values = values

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Return the object in a file; raises `LoadError` (BadConfiguration) where there is none."""
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}); a model folder needs this file"
            raise LoadError(FailureReason.BAD_CONFIGURATION, message) from error
        except ValueError as error:
            raise LoadError(FailureReason.BAD_CONFIGURATION, f"{path}: is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise LoadError(FailureReason.BAD_CONFIGURATION, f"{path}: must hold a JSON object")
        return cls(str(path), values)

    def error(self, name: str, problem: str) -> LoadError:
        """Return the failure to raise for a field."""
        found = f"is {json.dumps(self.values[name])}" if name in self.values else "is missing"
        return LoadError(FailureReason.BAD_CONFIGURATION, f"{self.source}: {name} {found}; it {problem}")

    def architecture(self) -> str:
        """Return the class name of the model, the only one of `architectures`."""
        names = self.values.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise self.error("architectures", "must be a list of one class name")
        return names[0]

    def count(self, name: str, *, default: int | None = None) -> int:
        """Return a positive whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, "must be a whole number of at least 1")
        return value

    def positive(self, name: str, *, default: float | None = None) -> float:
        """Return a finite number above zero."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(name, "must be a number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return a truth value; absent means false."""
        value = self._get(name, default=False)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def text(self, name: str, *, default: str) -> str:
        """Return a string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a string")
        return value

    def part(self, name: str) -> "Fields | None":
        """Return an object inside this one, or None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return Fields(f"{self.source}: {name}", value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value


def _refuse_unsupported(fields: Fields) -> None:
    """Refuse what would load but answer wrongly."""
    quantization = fields.part("quantization_config")
    if quantization is not None:
        method = quantization.text("quant_method", default="unknown")
        message = f"{fields.source}: the weights are quantised ({method}); use the model's bf16, f16 or f32 weights"
        raise LoadError(FailureReason.BAD_QUANTIZATION, message)
    if fields.text("hidden_act", default="silu") != "silu":
        raise fields.error("hidden_act", 'must be "silu"')
    if fields.flag("use_sliding_window"):
        raise fields.error("use_sliding_window", "must be false: sliding windows are not supported")


def _rope(fields: Fields) -> tuple[float, Llama3Scaling | None]:
    """Return base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    theta = fields.positive("rope_theta", default=10_000.0)
    merged, scaling = fields.part("rope_parameters"), fields.part("rope_scaling")
    if merged is not None:
        theta, scaling = merged.positive("rope_theta", default=theta), merged
    if scaling is None:
        return theta, None
    kind = scaling.text("rope_type", default=scaling.text("type", default="default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise scaling.error("rope_type", 'must be "default" or "llama3"')
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    if low >= high:
        raise scaling.error("low_freq_factor", f"must be below high_freq_factor, {high}")
    original = scaling.count("original_max_position_embeddings")
    return theta, Llama3Scaling(scaling.positive("factor"), low, high, original)
