"""Gemma 2."""

from functools import partial

from multimodel_server.layers.attention import Attention, Scores
from multimodel_server.layers.decoder_layer import SandwichLayer
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.models.config import gemma_config
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import read_rope
from multimodel_server.models.windows import layer_types, windows_of


def gemma2(fields: Fields) -> Blueprint:
    """Return a decoder of sandwiched layers, every other one with a window, whose scores and logits are soft-capped."""
    config = gemma_config(fields)
    rope = read_rope(fields, config)
    windows = windows_of(layer_types(fields, config.num_layers, lambda number: number % 2 == 0), fields)
    scale = fields.positive("query_pre_attn_scalar") ** -0.5
    score_cap = fields.optional_positive("attn_logit_softcapping", default=50.0)
    bias = fields.flag("attention_bias")
    norm = partial(RmsNorm, eps=config.rms_norm_eps, plus_one=True)

    def layer(number: int) -> SandwichLayer:
        scores = Scores(scale, windows[number], score_cap)
        attention = Attention(config.hidden_size, config.heads, rope, scores, qkv_bias=bias, output_bias=bias)
        mlp = GatedMlp(config.hidden_size, config.intermediate_size, config.activation)
        return SandwichLayer(config.hidden_size, norm, attention, mlp)

    return Blueprint(
        config,
        norm,
        layer,
        embedding_scale=config.hidden_size**0.5,
        logit_soft_cap=fields.optional_positive("final_logit_softcapping", default=30.0),
    )
