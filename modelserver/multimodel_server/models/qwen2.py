"""Qwen2 and Qwen2.5."""

from functools import partial

from multimodel_server.layers.attention import Attention, Scores
from multimodel_server.layers.decoder_layer import DecoderLayer
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.models.config import decoder_config
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import read_rope
from multimodel_server.models.windows import late_windows


def qwen2(fields: Fields) -> Blueprint:
    """Return a decoder with biased queries, keys and values, whose late layers may see a window only."""
    config = decoder_config(fields)
    rope = read_rope(fields, config)
    windows = late_windows(fields, config.num_layers)
    norm = partial(RmsNorm, eps=config.rms_norm_eps)

    def layer(number: int) -> DecoderLayer:
        scores = Scores(config.head_dim**-0.5, windows[number])
        attention = Attention(config.hidden_size, config.heads, rope, scores, qkv_bias=True)
        mlp = GatedMlp(config.hidden_size, config.intermediate_size, config.activation)
        return DecoderLayer(config.hidden_size, norm, attention, mlp)

    return Blueprint(config, norm, layer)
