"""How a configuration file describes rotary positions, in the spellings of transformers 5 and of the years before."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from multimodel_server.layers.rope_scaling import LinearScaling, Llama3Scaling, LongScaling, Scaling, YarnScaling
from multimodel_server.layers.rotary import Rope
from multimodel_server.models.config import DecoderConfig
from multimodel_server.models.fields import Fields

ORIGINAL_CONTEXT = "original_max_position_embeddings"


def read_rope(fields: Fields, config: DecoderConfig, *, theta: float = 10_000.0) -> Rope:
    """Return the positions of `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Raises:
        LoadError: BadConfiguration, naming the file and the field.
    """
    base = fields.positive("rope_theta", default=theta)
    return rope_of(fields.part("rope_parameters") or fields.part("rope_scaling"), fields, config, base)


def rope_of(spec: Fields | None, fields: Fields, config: DecoderConfig, theta: float) -> Rope:
    """Return the positions of one object of settings inside a file; `theta` holds where it names none."""
    share = fields.positive("partial_rotary_factor", default=1.0)
    if spec is None:
        return Rope(_turned(fields, config, share), theta)
    turned = _turned(spec, config, share)
    kind = spec.choice("rope_type" if "rope_type" in spec.values else "type", _SCALINGS, default="default")
    return Rope(turned, spec.positive("rope_theta", default=theta), _SCALINGS[kind](spec, fields, config, turned))


def _turned(spec: Fields, config: DecoderConfig, share: float) -> int:
    """Return how many dimensions of a head are turned; `share` of them where the object names no other."""
    share = spec.positive("partial_rotary_factor", default=share)
    turned = int(config.head_dim * share)
    if share > 1 or turned < 1 or turned % 2:
        raise spec.error("partial_rotary_factor", f"must name an even part of head_dim, {config.head_dim}")
    return turned


def _unscaled(_spec: Fields, _fields: Fields, _config: DecoderConfig, _turned: int) -> None:
    return None


def _linear(spec: Fields, _fields: Fields, _config: DecoderConfig, _turned: int) -> Scaling:
    return LinearScaling(spec.positive("factor"))


def _llama3(spec: Fields, fields: Fields, _config: DecoderConfig, _turned: int) -> Scaling:
    low, high = spec.positive("low_freq_factor"), spec.positive("high_freq_factor")
    if low >= high:
        raise spec.error("low_freq_factor", f"must be below high_freq_factor, {high}")
    return Llama3Scaling(spec.positive("factor"), low, high, _original_context(spec, fields))


def _yarn(spec: Fields, fields: Fields, _config: DecoderConfig, _turned: int) -> Scaling:
    return YarnScaling(
        factor=spec.positive("factor"),
        original_context=_original_context(spec, fields),
        beta_fast=spec.positive("beta_fast", default=32.0),
        beta_slow=spec.positive("beta_slow", default=1.0),
        whole_dims=spec.flag("truncate", default=True),
        attention_factor=spec.optional_positive("attention_factor"),
        mscale=spec.optional_positive("mscale"),
        mscale_all_dim=spec.optional_positive("mscale_all_dim"),
    )


def _long(spec: Fields, fields: Fields, config: DecoderConfig, turned: int) -> Scaling:
    original = _original_context(spec, fields)
    if original < 2:
        raise fields.error(ORIGINAL_CONTEXT, "must be a whole number of at least 2")
    return LongScaling(
        short_factors=spec.numbers("short_factor", turned // 2),
        long_factors=spec.numbers("long_factor", turned // 2),
        original_context=original,
        factor=spec.positive("factor", default=config.max_position_embeddings / original),
        attention_factor=spec.optional_positive("attention_factor"),
    )


def _original_context(spec: Fields, fields: Fields) -> int:
    """Return the context before it was extended; Phi-3's files say it outside of the rope settings."""
    return (fields if ORIGINAL_CONTEXT in fields.values else spec).count(ORIGINAL_CONTEXT)


_SCALINGS: Mapping[str, Callable[[Fields, Fields, DecoderConfig, int], Scaling | None]] = MappingProxyType(
    {"default": _unscaled, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _long, "su": _long}
)
"""How each kind of scaling is read; "su" is what the first Phi-3 files call longrope."""
