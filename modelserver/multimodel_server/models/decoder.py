"""What all decoder-only language models share: a stack of layers between an embedding and a head."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from multimodel_server import kernels
from multimodel_server.kernels import PagedLayout
from multimodel_server.layers.attention import LayerCache
from multimodel_server.layers.decoder_layer import DecoderLayer
from multimodel_server.layers.embedding import Embedding
from multimodel_server.layers.linear import Linear
from multimodel_server.layers.mlp import SparseMlp
from multimodel_server.layers.norm import Norm
from multimodel_server.layers.rotary import Rope, Rotary
from multimodel_server.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model as its configuration describes it, before there is room for its weights."""

    config: DecoderConfig
    norm: Norm
    layer: Callable[[int], DecoderLayer]
    """Makes the layer of a number, with uninitialised weights."""
    embedding_scale: float = 1.0
    logit_soft_cap: float | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Parts of tensor names in checkpoints -> ours, where they differ."""


class Decoder(nn.Module):
    """A language model; attributes carry the names of Hugging Face checkpoints, less the leading `model.`.

    Made on torch's default device and in its default element type.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.config = config = blueprint.config
        self.logit_soft_cap = blueprint.logit_soft_cap
        self.renamed = blueprint.renamed
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, blueprint.embedding_scale)
        layers = [blueprint.layer(number) for number in range(config.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = blueprint.norm(config.hidden_size)
        tied = config.tie_word_embeddings
        self.lm_head = self.embed_tokens if tied else Linear(config.hidden_size, config.vocab_size)
        ropes = dict.fromkeys(layer.self_attn.rope for layer in layers)
        self.ropes = tuple(rope for rope in ropes if rope is not None)
        self.rotaries: dict[Rope, Rotary] = {}

    def hold_matrices(self, dtype: torch.dtype) -> None:
        """Make room for the weights of products and of the embedding in another type than that of the computation."""
        for module in self.modules():
            if isinstance(module, Linear | Embedding):
                module.weight.data = torch.empty_like(module.weight, dtype=dtype)

    def matrices(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Return the weights of products, the head's included, each with its bias."""
        for module in self.modules():
            if isinstance(module, Linear):
                yield module.weight, module.bias
        if self.lm_head is self.embed_tokens:
            yield self.embed_tokens.weight, None

    def limit_context(self, tokens: int) -> None:
        """Tell how long texts may become, which some models' positions depend on; once before the first use."""
        for rope in self.ropes:
            if rope in self.rotaries:
                self.rotaries[rope].limit(tokens)
            else:
                self.rotaries[rope] = Rotary(rope, tokens, self.embed_tokens.weight.device)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: Sequence[LayerCache], layout: PagedLayout
    ) -> torch.Tensor:
        """Return the last hidden states [tokens, hidden_size] of packed tokens; fills `cache` at their slots."""
        hidden = self.embed_tokens(token_ids)
        residual = torch.zeros_like(hidden)
        rotations = {rope: rotary(positions) for rope, rotary in self.rotaries.items()}
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            hidden, residual = layer(hidden, residual, rotations, layer_cache, layout)
        return self.norm.add(hidden, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [rows, vocab_size] float32 for hidden states [rows, hidden_size]."""
        return self.narrow_logits(hidden).float()

    def narrow_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [rows, vocab_size] in the type that they are computed in; widening them adds nothing."""
        logits = kernels.linear(hidden, self.lm_head.weight)
        return logits if self.logit_soft_cap is None else kernels.soft_capped(logits.float(), self.logit_soft_cap)

    @property
    def waits_for_device(self) -> bool:
        """Whether some layer has the host wait for what the device computes: then no graph can be captured."""
        return any(isinstance(layer.mlp, SparseMlp) for layer in self.layers)
