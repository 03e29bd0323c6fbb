"""Who computes the products of decoding, cuBLAS or Triton: measured on the device, before anything is captured.

Both are timed as captured launches, over the weights of all layers in turn: then they are read from memory, as they are
in decoding, and the host's part is left out. What was chosen holds as long as the process lives.
"""

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch

from multimodel_server import kernels
from multimodel_server.engine.graphs import GraphPool
from multimodel_server.kernels import reference
from multimodel_server.kernels.linear_plan import ROW_COUNTS, LinearTiling, Product, Room, fastest, tilings

Weights = tuple[torch.Tensor, torch.Tensor | None]
"""A matrix [outs, width] and perhaps a bias [outs]."""
Seconds = Callable[[kernels.LinearKernel, Product, Sequence[Weights]], float]
"""Tells what one product takes if it is computed by a function, on average over weights of one shape."""

BYTES_IN_TURN = 256 << 20
"""Weights that are multiplied by in turn: some times what a device keeps near its processors."""
REPEATS = 3

log = logging.getLogger(__name__)


def choose_linears(weights: Iterable[Weights], room: Room, seconds: Seconds) -> None:
    """Choose who computes products of few rows by some weights, as far as that is not chosen yet; log why."""
    from multimodel_server.kernels import triton_linear  # not before there is a device

    began = time.monotonic()
    alike: dict[Product, list[Weights]] = defaultdict(list)
    for weight, bias in weights:
        for rows in ROW_COUNTS:
            alike[Product.of(rows, weight, bias)].append((weight, bias))
    for product, mine in alike.items():
        tried = tilings(product, room)
        if not tried or product in kernels.linears:
            continue
        in_turn = mine[: max(1, BYTES_IN_TURN // mine[0][0].nbytes)]
        by_tiling = {tiling: partial(triton_linear.linear, tiling=tiling) for tiling in tried}
        plain = seconds(reference.linear, product, in_turn)
        times = {tiling: seconds(linear, product, in_turn) for tiling, linear in by_tiling.items()}
        best = fastest(plain, times)
        kernels.linears[product] = reference.linear if best is None else by_tiling[best]
        log.info("%s", verdict(product, plain, times, best))
    log.info("Chose who computes products of few rows in %.1fs", time.monotonic() - began)


def verdict(product: Product, plain: float, times: Mapping[LinearTiling, float], best: LinearTiling | None) -> str:
    """Return a line that says what was measured, in seconds a product, and what follows from it."""
    tried = ", ".join(f"{1e6 * took:.1f} µs ({tiling.outs} x {tiling.width})" for tiling, took in times.items())
    rate = product.outs * product.width * product.dtype.itemsize / min(plain, *times.values()) / 1e12
    shape = f"{product.outs} x {product.width}{' with bias' if product.has_bias else ''}, {product.rows} at once"
    winner = "cuBLAS" if best is None else f"Triton ({best.outs} x {best.width})"
    return f"Products of {shape}: cuBLAS {1e6 * plain:.1f} µs, Triton {tried}; by {winner}, {rate:.2f} TB/s at best"


def room_of(device: torch.device) -> Room:
    """Return what a CUDA device has for programs."""
    properties = torch.cuda.get_device_properties(device)
    shared_bytes: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return Room(properties.multi_processor_count, shared_bytes)


def device_seconds(linear: kernels.LinearKernel, product: Product, weights: Sequence[Weights]) -> float:
    """Return what one product takes on a CUDA device, on average over the weights; of some repeats, the shortest."""
    rows = torch.randn((product.rows, product.width), dtype=product.dtype, device=weights[0][0].device)

    def all_in_turn() -> torch.Tensor:
        return [linear(rows, weight, bias) for weight, bias in weights][-1]

    captured = GraphPool().captured(all_in_turn)
    captured.replay()
    marks = [_mark()]
    for _ in range(REPEATS):
        captured.replay()
        marks.append(_mark())
    marks[-1].synchronize()
    milliseconds: float = min(before.elapsed_time(after) for before, after in itertools.pairwise(marks))
    return milliseconds / 1000 / len(weights)


def _mark() -> torch.cuda.Event:
    """Return when the device has come so far."""
    mark: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    mark.record()
    return mark
