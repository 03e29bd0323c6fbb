"""Phi-3, Phi-3.5 and Phi-4, dense text models."""

from functools import partial

from multimodel_server.layers.attention import Attention, Scores
from multimodel_server.layers.decoder_layer import DecoderLayer
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.models.config import decoder_config
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import read_rope


def phi3(fields: Fields) -> Blueprint:
    """Return a decoder that may turn a part of each head only, and may see a window of the text only."""
    config = decoder_config(fields)
    rope = read_rope(fields, config)
    norm = partial(RmsNorm, eps=config.rms_norm_eps)
    scores = Scores(config.head_dim**-0.5, fields.optional_count("sliding_window"))

    def layer(_: int) -> DecoderLayer:
        attention = Attention(config.hidden_size, config.heads, rope, scores)
        mlp = GatedMlp(config.hidden_size, config.intermediate_size, config.activation)
        return DecoderLayer(config.hidden_size, norm, attention, mlp)

    return Blueprint(config, norm, layer)
