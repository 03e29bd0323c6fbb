"""What all decoder-only language models share: a stack of layers between an embedding and a head."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from multimodel_server.kernels import PagedLayout
from multimodel_server.layers.attention import Attention, LayerCache
from multimodel_server.layers.embedding import Embedding
from multimodel_server.layers.linear import Linear
from multimodel_server.layers.mlp import GatedMlp
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.layers.rotary import Rotary, Rotation
from multimodel_server.models.config import DecoderConfig


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: DecoderConfig, self_attn: Attention, mlp: GatedMlp) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = self_attn
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rotation: Rotation,
        cache: LayerCache,
        layout: PagedLayout,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this layer's output, not yet added, and the residual it is to be added to."""
        hidden, residual = self.input_layernorm.add(hidden, residual)
        hidden = self.self_attn(hidden, rotation, cache, layout)
        hidden, residual = self.post_attention_layernorm.add(hidden, residual)
        return self.mlp(hidden), residual


class Decoder(nn.Module):
    """A language model; attributes carry the names of Hugging Face checkpoints, less the leading `model.`."""

    def __init__(self, config: DecoderConfig, layer: Callable[[], DecoderLayer]) -> None:
        super().__init__()
        self.config = config
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer() for _ in range(config.num_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = self.embed_tokens if tied else Linear(config.hidden_size, config.vocab_size)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: Sequence[LayerCache], layout: PagedLayout
    ) -> torch.Tensor:
        """Return the last hidden states [tokens, hidden_size] of packed tokens; fills `cache` at their slots."""
        hidden = self.embed_tokens(token_ids)
        residual = torch.zeros_like(hidden)
        rotation = self.rotary(positions)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            hidden, residual = layer(hidden, residual, rotation, layer_cache, layout)
        return self.norm.add(hidden, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [rows, vocab_size] float32 for hidden states [rows, hidden_size]."""
        return nn.functional.linear(hidden, self.lm_head.weight).float()
