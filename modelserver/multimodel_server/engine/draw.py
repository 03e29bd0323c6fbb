"""One token at random from a row of logits, by a number that the seed and the position alone decide.

The number is looked up in the order of token ids, so that two tokens about equally probable may swap ranks without
changing the draw.
"""

import hashlib
import struct

import torch

from multimodel_server.engine.messages import Sampling

_TOP_P_CANDIDATES = 1024
"""Nearly every top-p is reached within so many tokens; only for the others the whole vocabulary is sorted."""


def draw(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Return one token of [vocabulary] after temperature, then top-k, then top-p, then min-p.

    `position` counts the request's generated tokens. Raises FloatingPointError if the logits are no distribution.
    """
    number = uniform(sampling.seed, position)
    if not 0 < sampling.top_k < len(logits) and sampling.top_p >= 1:
        weights = _probabilities(logits, sampling.temperature)
        if sampling.min_p > 0:
            weights *= weights >= sampling.min_p * weights.max()
        return _invert(weights, number)
    weights, ids = _likeliest(logits, sampling)
    weights *= weights >= sampling.min_p * weights[0]
    ids, order = ids.sort()
    return int(ids[_invert(weights[order], number)])


def uniform(seed: int, position: int) -> float:
    """Return a number of [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return ((logits - logits.max()) / temperature).softmax(dim=0)


def _likeliest(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (float64; 0 beyond top-p) and ids of the tokens that top-k left, the likeliest first."""
    if 0 < sampling.top_k < len(logits):
        best, ids = logits.topk(sampling.top_k)
        weights = _probabilities(best.double(), sampling.temperature)
    else:
        weights, ids = _enough_for_top_p(_probabilities(logits, sampling.temperature), sampling.top_p)
    before = weights.cumsum(dim=0) - weights
    before[0] = -1.0  # the most probable token stays, whatever top_p
    return weights * (before < sampling.top_p), ids


def _enough_for_top_p(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the likeliest tokens, as many as make up `top_p` at least."""
    if len(probabilities) > _TOP_P_CANDIDATES:
        best, ids = probabilities.topk(_TOP_P_CANDIDATES)
        if best.double().sum() >= top_p:
            return best.double(), ids
    best, ids = probabilities.sort(descending=True, stable=True)
    return best.double(), ids


def _invert(weights: torch.Tensor, number: float) -> int:
    """Return the first index whose cumulative weight exceeds `number` times the total: never one of weight zero."""
    cumulative = weights.cumsum(dim=0, dtype=torch.float64)
    total = cumulative[-1]
    if not total.isfinite():
        raise FloatingPointError("the logits are not finite")
    last = torch.searchsorted(cumulative, total)
    index = torch.searchsorted(cumulative, total * number, right=True)
    return int(torch.minimum(index, last))
