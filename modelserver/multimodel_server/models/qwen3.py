"""Qwen3 (dense)."""

from multimodel_server.layers.attention import Attention
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.models.config import DecoderConfig
from multimodel_server.models.decoder import Decoder, DecoderLayer


def qwen3(config: DecoderConfig) -> Decoder:
    """Return a decoder whose query and key heads are normalised before they are turned."""

    def layer() -> DecoderLayer:
        attention = Attention(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            bias=config.attention_bias,
            qk_norm_eps=config.rms_norm_eps,
        )
        return DecoderLayer(config, attention, GatedMlp(config.hidden_size, config.intermediate_size))

    return Decoder(config, layer)
