"""CUDA graphs of decoding: which batch sizes have one, and how they are captured and counted on.

A graph is replayed with one call, however many kernels it has; launching those one by one would take the host longer
than the device needs to compute them.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

SMALL_SIZES = (1, 2, 4, 8)
SIZE_STEP = 16

log = logging.getLogger(__name__)


def graph_sizes(max_seqs: int) -> list[int]:
    """Return the batch sizes that have a graph, ascending; others are padded to the next larger one."""
    sizes = {*SMALL_SIZES, *range(SIZE_STEP, max_seqs, SIZE_STEP)}
    return [*sorted(size for size in sizes if size < max_seqs), max_seqs]


def graphs_wanted() -> bool:
    """Tell whether decoding is captured; with `MULTIMODEL_CUDA_GRAPHS=0` the same step is launched kernel by kernel."""
    return os.environ.get("MULTIMODEL_CUDA_GRAPHS") != "0"


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A computation over memory that never moves, and where its result is after each replay."""

    graph: torch.cuda.CUDAGraph
    result: torch.Tensor

    def replay(self) -> torch.Tensor:
        """Compute again, and return the result: valid until the next replay of any graph of the same pool."""
        self.graph.replay()
        return self.result


class GraphPool:
    """The memory that graphs share, as only one of them runs at a time; it ends with the last of them."""

    def __init__(self) -> None:
        self._handle = torch.cuda.graph_pool_handle()

    def captured(self, compute: Callable[[], torch.Tensor]) -> CapturedStep:
        """Capture what `compute` launches; it is called once before, to compile and to choose what it needs."""
        compute()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._handle):
            result = compute()
        return CapturedStep(graph, result)
