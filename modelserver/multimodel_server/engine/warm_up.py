"""Steps that stand for all others: what they make a device compile and allocate, no request will wait for.

Their tokens go to the sink and are read from there.
"""

from collections.abc import Iterator

from multimodel_server.engine.blocks import SINK
from multimodel_server.engine.device_steps import StepSizes
from multimodel_server.engine.graphs import graph_sizes
from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk

SAMPLINGS = (
    Sampling(max_tokens=1),
    Sampling(max_tokens=1, temperature=1.0),
    Sampling(max_tokens=1, temperature=1.0, top_k=50),
    Sampling(max_tokens=1, temperature=1.0, top_p=0.9),
    Sampling(max_tokens=1, temperature=1.0, min_p=0.05),
    Sampling(max_tokens=1, temperature=0.7, top_k=50, top_p=0.9, min_p=0.05),
    Sampling(max_tokens=1, temperature=1.0, logprobs=1),
)
PIECES = (2, 15, 16, 17, 64)
"""Tokens of a piece of a prompt beside others that decode: kernels may be compiled for numbers of some kind."""


def warm_up_steps(sizes: StepSizes, block_size: int) -> Iterator[list[Chunk]]:
    """Return steps of every kind, the largest first."""
    largest = min(sizes.tokens, sizes.context)
    yield [_chunk(0, 0, largest, block_size)]
    each = min(max(2, sizes.tokens // sizes.seqs), largest)
    yield [_chunk(row, 0, each, block_size) for row in range(min(sizes.seqs, sizes.tokens // each))]
    for size in graph_sizes(sizes.seqs):
        decoding = [_chunk(row, each - 1, each, block_size) for row in range(size)]
        yield decoding
        for piece in PIECES:
            if size < sizes.seqs and piece <= largest:
                yield [*decoding, _chunk(size, 0, piece, block_size)]


def _chunk(row: int, start: int, end: int, block_size: int) -> Chunk:
    sampling = SAMPLINGS[row % len(SAMPLINGS)]
    request = Request(f"warm-up {row}", [0] * end, end, sampling, block_table=[SINK] * -(-end // block_size))
    return Chunk(request, start, end, samples=True)
