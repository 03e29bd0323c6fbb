"""SmolLM3."""

from functools import partial

from multimodel_server.layers.attention import Attention, Scores
from multimodel_server.layers.decoder_layer import DecoderLayer
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.models.config import decoder_config
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import read_rope
from multimodel_server.models.windows import layer_types, windows_of


def smollm3(fields: Fields) -> Blueprint:
    """Return a decoder in which every few layers know no positions."""
    config = decoder_config(fields, tied=True)
    rope = read_rope(fields, config, theta=2_000_000.0)
    turned = _turned_layers(fields, config.num_layers)
    windows = _windows(fields, turned)
    bias, mlp_bias = fields.flag("attention_bias"), fields.flag("mlp_bias")
    norm = partial(RmsNorm, eps=config.rms_norm_eps)

    def layer(number: int) -> DecoderLayer:
        scores = Scores(config.head_dim**-0.5, windows[number])
        layer_rope = rope if turned[number] else None
        attention = Attention(config.hidden_size, config.heads, layer_rope, scores, qkv_bias=bias, output_bias=bias)
        mlp = GatedMlp(config.hidden_size, config.intermediate_size, config.activation, bias=mlp_bias)
        return DecoderLayer(config.hidden_size, norm, attention, mlp)

    return Blueprint(config, norm, layer)


def _turned_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Tell of each layer whether it knows positions; `no_rope_layers` says 1 for those that do."""
    if fields.values.get("no_rope_layers") is not None:
        return fields.flags("no_rope_layers", layers)
    interval = fields.count("no_rope_layer_interval", default=4)
    return tuple((number + 1) % interval != 0 for number in range(layers))


def _windows(fields: Fields, turned: tuple[bool, ...]) -> tuple[int | None, ...]:
    """Return each layer's window, if they are enabled; unless said otherwise, of the layers without positions."""
    if not fields.flag("use_sliding_window"):
        return (None,) * len(turned)
    return windows_of(layer_types(fields, len(turned), lambda number: not turned[number]), fields)
