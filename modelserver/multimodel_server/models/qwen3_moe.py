"""Qwen3, mixtures of experts."""

from functools import partial

from multimodel_server.layers.attention import Attention, Scores
from multimodel_server.layers.decoder_layer import DecoderLayer
from multimodel_server.layers.mlp import GatedMlp, SparseMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.models.config import decoder_config
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.experts import read_experts
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import read_rope


def qwen3_moe(fields: Fields) -> Blueprint:
    """Return Qwen3's decoder with a mixture of experts in the layers that are not said to be dense."""
    config = decoder_config(fields)
    rope = read_rope(fields, config)
    count_field = "num_local_experts" if "num_local_experts" in fields.values else "num_experts"  # since transformers 5
    experts, per_token = read_experts(fields, count_field)
    inner, normalised = fields.count("moe_intermediate_size"), fields.flag("norm_topk_prob")
    dense, step = fields.indices("mlp_only_layers"), fields.count("decoder_sparse_step", default=1)
    window = fields.count("sliding_window") if fields.flag("use_sliding_window") else None
    bias = fields.flag("attention_bias")
    norm = partial(RmsNorm, eps=config.rms_norm_eps)
    scores = Scores(config.head_dim**-0.5, window)

    def mlp(number: int) -> GatedMlp | SparseMlp:
        if number in dense or (number + 1) % step:
            return GatedMlp(config.hidden_size, config.intermediate_size, config.activation)
        return SparseMlp(config.hidden_size, inner, config.activation, experts, per_token, normalised=normalised)

    def layer(number: int) -> DecoderLayer:
        attention = Attention(
            config.hidden_size, config.heads, rope, scores, qkv_bias=bias, output_bias=bias, head_norm=norm
        )
        return DecoderLayer(config.hidden_size, norm, attention, mlp(number))

    return Blueprint(config, norm, layer)
