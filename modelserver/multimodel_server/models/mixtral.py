"""Mixtral."""

from functools import partial

from multimodel_server.layers.attention import Attention, Scores
from multimodel_server.layers.decoder_layer import DecoderLayer
from multimodel_server.layers.mlp import SparseMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.models.config import decoder_config
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.experts import read_experts
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import read_rope

RENAMED = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def mixtral(fields: Fields) -> Blueprint:
    """Return a decoder with a mixture of experts in every layer."""
    config = decoder_config(fields)
    rope = read_rope(fields, config, theta=1_000_000.0)
    experts, per_token = read_experts(fields, "num_local_experts")
    norm = partial(RmsNorm, eps=config.rms_norm_eps)
    scores = Scores(config.head_dim**-0.5, fields.optional_count("sliding_window"))

    def layer(_: int) -> DecoderLayer:
        attention = Attention(config.hidden_size, config.heads, rope, scores)
        inner, activation = config.intermediate_size, config.activation
        mlp = SparseMlp(config.hidden_size, inner, activation, experts, per_token, normalised=True)
        return DecoderLayer(config.hidden_size, norm, attention, mlp)

    return Blueprint(config, norm, layer, renamed=RENAMED)
