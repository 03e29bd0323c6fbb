"""Runs the model: owns the weights and the cache tensors, turns a batch into one token per finished chunk."""

from collections.abc import Callable

import torch

from multimodel_server.engine.batch import Batch
from multimodel_server.engine.sampler import sample
from multimodel_server.layers.attention import LayerCache
from multimodel_server.models.decoder import Decoder


class Runner:
    """A decoder with its paged cache; `cache` is [layers, 2, blocks, block_size, kv_heads, head_dim]."""

    def __init__(self, decoder: Decoder, cache: torch.Tensor) -> None:
        self.decoder = decoder
        self.device = cache.device
        self.layers = [LayerCache(keys, values) for keys, values in cache.unbind(0)]

    def after_each_layer(self, call: Callable[[], None]) -> None:
        """Have `call` made whenever a layer is computed: a long step is then seen to advance."""
        for layer in self.decoder.layers:
            layer.register_forward_hook(lambda *_: call())

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[int]:
        """Compute a batch's tokens into the cache and return the next token of each request in `batch.sampled`."""
        hidden = self.decoder(batch.token_ids, batch.positions, self.layers, batch.layout)
        if not batch.sampled:
            return []
        return sample(self.decoder.logits(hidden[batch.sampled_rows]), batch.sampled)
