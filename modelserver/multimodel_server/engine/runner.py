"""Runs the model: owns the weights and the cache tensors, turns a batch into an outcome per finished chunk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from multimodel_server.engine.batch import Batch, build_batch
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.pipeline import Launched
from multimodel_server.engine.request import Request
from multimodel_server.engine.sampler import sample, state_of
from multimodel_server.engine.scheduler import Chunk
from multimodel_server.layers.attention import LayerCache
from multimodel_server.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was finished when its launch returned."""

    result: list[Outcome]

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of each chunk that samples, in order."""
        return self.result


class Runner:
    """A decoder with its paged cache; `cache` is [layers, 2, blocks, block_size, kv_heads, head_dim]."""

    ahead = 0
    """How many steps may be launched behind one that runs; here, launching computes."""
    late_compilations = 0
    """Kernels that requests had to wait for, as they were not compiled beforehand."""

    def __init__(self, decoder: Decoder, cache: torch.Tensor) -> None:
        self.decoder = decoder
        self.device = cache.device
        self.block_size = cache.shape[3]
        self.layers = [LayerCache(keys, values) for keys, values in cache.unbind(0)]

    def capture(self) -> None:
        """Do beforehand what the first steps would have to wait for: nothing, where none is compiled or captured."""

    def after_each_layer(self, call: Callable[[], None]) -> None:
        """Have `call` made whenever a layer is computed: a long step is then seen to advance."""
        for layer in self.decoder.layers:
            layer.register_forward_hook(lambda *_: call())

    def launch(self, chunks: Sequence[Chunk]) -> Launched:
        """Begin a step; what it brings can be had from what is returned."""
        return Done(self.step(build_batch(chunks, self.block_size, self.device)))

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[Outcome]:
        """Compute a batch's tokens into the cache and return the outcome of each request in `batch.sampled`."""
        hidden = self.decoder(batch.token_ids, batch.positions, self.layers, batch.layout)
        self._score_prompts(hidden, batch.chunks)
        last = hidden[batch.sampled_rows]
        outcomes: dict[int, Outcome] = {}
        for pools in (False, True):
            rows = [row for row, request in enumerate(batch.sampled) if request.pools is pools]
            if rows:
                requests = [batch.sampled[row] for row in rows]
                brought = embedded(last[rows]) if pools else chosen(self.decoder.logits(last[rows]), requests)
                outcomes |= zip(rows, brought, strict=True)
        return [outcomes[row] for row in range(len(batch.sampled))]

    def _score_prompts(self, hidden: torch.Tensor, chunks: Sequence[Chunk]) -> None:
        """Collect the log-probabilities of prompts that ask for them from [tokens, hidden_size]."""
        row = 0
        for chunk in chunks:
            request, end = chunk.request, row + chunk.end - chunk.start
            scores = None if request.prompt_logprobs is None else state_of(request).prompt_logprobs
            if scores is not None:
                prompt = request.token_ids[: request.prompt_length]
                scores.add(hidden[row:end], chunk.start, prompt, self.decoder.logits)
            row = end


def chosen(logits: torch.Tensor, requests: Sequence[Request]) -> list[Outcome]:
    """Choose the next tokens by [requests, vocabulary] float32; the first one brings the prompt's log-probabilities."""
    outcomes = sample(logits, requests)
    for row, request in enumerate(requests):
        scores = state_of(request).prompt_logprobs
        if scores is not None and not request.generated:
            outcomes[row] = outcomes[row]._replace(prompt_logprobs=scores.entries)
    return outcomes


def embedded(hidden: torch.Tensor) -> list[Outcome]:
    """Return the hidden states [requests, hidden_size] at unit length."""
    vectors = torch.nn.functional.normalize(hidden.float(), dim=-1)
    finite = vectors.isfinite().all(dim=-1).tolist()
    return [
        Outcome(embedding=vector) if good else Outcome(error="the model's hidden state is not finite")
        for vector, good in zip(vectors.tolist(), finite, strict=True)
    ]
