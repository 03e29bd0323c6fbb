"""Gemma 3, text."""

from collections.abc import Mapping
from functools import partial

from multimodel_server.layers.attention import Attention, Scores
from multimodel_server.layers.decoder_layer import SandwichLayer
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.layers.rotary import Rope
from multimodel_server.models.config import DecoderConfig, gemma_config
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import rope_of
from multimodel_server.models.windows import FULL, SLIDING, layer_types, windows_of


def gemma3(fields: Fields) -> Blueprint:
    """Return a decoder of sandwiched layers; most see a window only and have positions of their own."""
    config = gemma_config(fields)
    pattern = fields.count("sliding_window_pattern", default=6)
    types = layer_types(fields, config.num_layers, lambda number: (number + 1) % pattern != 0)
    windows, ropes = windows_of(types, fields), _ropes(fields, config)
    scale = fields.positive("query_pre_attn_scalar") ** -0.5
    bias = fields.flag("attention_bias")
    norm = partial(RmsNorm, eps=config.rms_norm_eps, plus_one=True)

    def layer(number: int) -> SandwichLayer:
        # This architecture's files have attn_logit_softcapping too, but its attention never caps.
        scores, rope = Scores(scale, windows[number]), ropes[types[number]]
        attention = Attention(
            config.hidden_size, config.heads, rope, scores, qkv_bias=bias, output_bias=bias, head_norm=norm
        )
        mlp = GatedMlp(config.hidden_size, config.intermediate_size, config.activation)
        return SandwichLayer(config.hidden_size, norm, attention, mlp)

    return Blueprint(
        config,
        norm,
        layer,
        embedding_scale=config.hidden_size**0.5,
        logit_soft_cap=fields.optional_positive("final_logit_softcapping"),
    )


def _ropes(fields: Fields, config: DecoderConfig) -> Mapping[str, Rope]:
    """Return each layer type's positions; before transformers 5, `rope_scaling` meant the full layers alone."""
    theta = fields.positive("rope_theta", default=1_000_000.0)
    local_theta = fields.positive("rope_local_base_freq", default=10_000.0)
    both = fields.part("rope_parameters")
    full, sliding = (both.part(FULL), both.part(SLIDING)) if both else (fields.part("rope_scaling"), None)
    return {FULL: rope_of(full, fields, config, theta), SLIDING: rope_of(sliding, fields, config, local_theta)}
