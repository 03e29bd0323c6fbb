"""What the `config.json` of every architecture says; what only some say is read where they are composed."""

from dataclasses import dataclass

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
from multimodel_server.layers.attention import Heads
from multimodel_server.layers.mlp import ACTIVATIONS, Activation
from multimodel_server.models.fields import Fields


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape that all decoders have."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    activation: Activation
    tie_word_embeddings: bool
    dtype: str

    @property
    def heads(self) -> Heads:
        """The heads of an attention layer."""
        return Heads(self.num_heads, self.num_kv_heads, self.head_dim)


def decoder_config(
    fields: Fields, *, tied: bool = False, activation_field: str = "hidden_act", activation: str = "silu"
) -> DecoderConfig:
    """Return the shape that a configuration file describes; `tied` and `activation` hold where it is silent on them.

    Raises:
        LoadError: BadConfiguration or BadQuantization, naming the file and the field.
    """
    _refuse_quantised(fields)
    hidden_size, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    config = DecoderConfig(
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.count("intermediate_size"),
        num_layers=fields.count("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.count("num_key_value_heads", default=num_heads),
        head_dim=fields.count("head_dim", default=hidden_size // num_heads),
        max_position_embeddings=fields.count("max_position_embeddings"),
        rms_norm_eps=fields.positive("rms_norm_eps"),
        activation=ACTIVATIONS[fields.choice(activation_field, ACTIVATIONS, default=activation)],
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=tied),
        dtype=fields.text("dtype", default=fields.text("torch_dtype", default="float32")),
    )
    if config.num_heads % config.num_kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads, {config.num_heads}")
    if config.head_dim % 2:
        raise fields.error("head_dim", "must be even")
    return config


def gemma_config(fields: Fields) -> DecoderConfig:
    """Return the shape that a file of the Gemma family describes; raises as `decoder_config`."""
    if fields.flag("use_bidirectional_attention"):
        raise fields.error("use_bidirectional_attention", "must be false: only texts that are read forwards are served")
    return decoder_config(fields, tied=True, activation_field="hidden_activation", activation="gelu_pytorch_tanh")


def _refuse_quantised(fields: Fields) -> None:
    quantization = fields.part("quantization_config")
    if quantization is not None:
        method = quantization.text("quant_method", default="unknown")
        message = f"{fields.source}: the weights are quantised ({method}); use the model's bf16, f16 or f32 weights"
        raise LoadError(FailureReason.BAD_QUANTIZATION, message)
