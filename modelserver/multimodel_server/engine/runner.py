"""Runs the model: owns the weights and the cache tensors, turns a batch into an outcome per finished chunk."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from multimodel_server.engine.batch import Batch
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.request import Request
from multimodel_server.engine.sampler import sample, state_of
from multimodel_server.engine.scheduler import Chunk
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
    def step(self, batch: Batch) -> list[Outcome]:
        """Compute a batch's tokens into the cache and return the outcome of each request in `batch.sampled`."""
        hidden = self.decoder(batch.token_ids, batch.positions, self.layers, batch.layout)
        self._score_prompts(hidden, batch.chunks)
        last = hidden[batch.sampled_rows]
        outcomes: dict[int, Outcome] = {}
        for compute, pools in ((self._sample, False), (_embed, True)):
            rows = [row for row, request in enumerate(batch.sampled) if request.pools is pools]
            if rows:
                outcomes |= zip(rows, compute(last[rows], [batch.sampled[row] for row in rows]), strict=True)
        return [outcomes[row] for row in range(len(batch.sampled))]

    def _sample(self, hidden: torch.Tensor, requests: Sequence[Request]) -> list[Outcome]:
        """Choose the next tokens after [requests, hidden_size]; the first one brings the prompt's log-probabilities."""
        outcomes = sample(self.decoder.logits(hidden), requests)
        for row, request in enumerate(requests):
            scores = state_of(request).prompt_logprobs
            if scores is not None and not request.generated:
                outcomes[row] = replace(outcomes[row], prompt_logprobs=scores.entries)
        return outcomes

    def _score_prompts(self, hidden: torch.Tensor, chunks: Sequence[Chunk]) -> None:
        """Collect the log-probabilities of prompts that ask for them from [tokens, hidden_size]."""
        row = 0
        for chunk in chunks:
            request, end = chunk.request, row + chunk.end - chunk.start
            scores = state_of(request).prompt_logprobs
            if scores is not None:
                prompt = request.token_ids[: request.prompt_length]
                scores.add(hidden[row:end], chunk.start, prompt, self.decoder.logits)
            row = end


def _embed(hidden: torch.Tensor, _: Sequence[Request]) -> list[Outcome]:
    """Return the hidden states [requests, hidden_size] at unit length."""
    vectors = torch.nn.functional.normalize(hidden.float(), dim=-1)
    finite = vectors.isfinite().all(dim=-1).tolist()
    return [
        Outcome(embedding=vector) if good else Outcome(error="the model's hidden state is not finite")
        for vector, good in zip(vectors.tolist(), finite, strict=True)
    ]
