"""From logits to tokens: each row by its own request's settings and its own random numbers, whatever its neighbours."""

import hashlib
import struct
from collections.abc import Sequence

import torch

from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Return the next token of each request from its row of [requests, vocabulary] float32."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, request in enumerate(requests):
        if request.sampling.temperature > 0:
            tokens[row] = draw(logits[row], request.sampling, request.generated)
    return tokens


def draw(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Return one token of [vocabulary], drawn after temperature, then top-k, then top-p of what top-k left.

    `position` counts the request's generated tokens: it and the seed alone decide the random number. It is looked up
    in the order of token ids, so that two tokens about equally probable may swap ranks without changing the draw.
    """
    scaled = (logits - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        best, ids = scaled.topk(sampling.top_k)
    elif sampling.top_p < 1:
        best, ids = scaled.sort(descending=True, stable=True)
    else:
        return _invert(scaled.double().softmax(dim=0), uniform(sampling.seed, position))
    weights = best.double().softmax(dim=0)
    if sampling.top_p < 1:
        before = weights.cumsum(dim=0) - weights
        before[0] = -1.0  # the most probable token stays, whatever top_p
        weights = weights * (before < sampling.top_p)
    by_id = torch.zeros(len(logits), dtype=torch.float64, device=logits.device).scatter_(0, ids, weights)
    return _invert(by_id, uniform(sampling.seed, position))


def uniform(seed: int, position: int) -> float:
    """Return a number of [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _invert(weights: torch.Tensor, number: float) -> int:
    """Return the first index whose cumulative weight exceeds `number` times the total: never one of weight zero."""
    cumulative = weights.cumsum(dim=0)
    total = cumulative[-1]
    last = torch.searchsorted(cumulative, total)
    index = torch.searchsorted(cumulative, total * number, right=True)
    return int(torch.minimum(index, last))
