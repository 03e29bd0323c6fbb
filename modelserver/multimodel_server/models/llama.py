"""Llama 2 and 3."""

from multimodel_server.layers.attention import Attention
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.models.config import DecoderConfig
from multimodel_server.models.decoder import Decoder, DecoderLayer


def llama(config: DecoderConfig) -> Decoder:
    """Return a decoder of plain grouped-query attention and gated MLPs."""

    def layer() -> DecoderLayer:
        attention = Attention(
            config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim, bias=config.attention_bias
        )
        return DecoderLayer(
            config, attention, GatedMlp(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        )

    return Decoder(config, layer)
