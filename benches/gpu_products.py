"""The products of decoding alone, by cuBLAS and by Triton: how near to copying they read their weights."""

from collections.abc import Mapping
from functools import partial

import torch
from gpu_floors import seconds
from gpu_measures import COPY, Measure, Setting, Tell
from shapes import SHAPES

from multimodel_server import kernels
from multimodel_server.engine.products import BYTES_IN_TURN, Seconds, Weights, device_seconds, room_of
from multimodel_server.kernels import reference
from multimodel_server.kernels.linear_plan import Product, Room, tilings

NAMES = ("qwen3-0.6b", "qwen3-4b", "qwen3-8b")
ROWS = (1, 8, 16)
DTYPE = torch.bfloat16


def products(setting: Setting, tell: Tell) -> None:
    """Measure every product of each shape, as captured launches over weights that are not near the processors."""
    on_device = setting.device == "cuda"
    timed = device_seconds if on_device else _on_host
    room = room_of(torch.device("cuda")) if on_device and kernels.has_triton() else None
    for name in NAMES:
        for part, (outs, width) in _matrices(setting.shape(name)).items():
            size = outs * width * DTYPE.itemsize
            count = 2 if setting.tiny else max(1, BYTES_IN_TURN // size)
            drawn = torch.randn(count, outs, width, dtype=DTYPE, device=setting.device)
            weights: list[Weights] = [(weight, None) for weight in drawn]
            times = {rows: _times(rows, weights, timed, room) for rows in ROWS}
            notes = (f"{rows} at once: {', '.join(lines)}" for rows, (lines, _) in times.items())
            share = size / times[1][1] / (setting.floor(COPY) * 1e12)
            tell(Measure(f"{part} of {name}, {outs} x {width}, 1 row", share, "%", notes=tuple(notes)))


def _times(rows: int, weights: list[Weights], timed: Seconds, room: Room | None) -> tuple[list[str], float]:
    """Return what each way to compute a product takes, as text, and the least of them in seconds."""
    product = Product.of(rows, *weights[0])
    plain = timed(reference.linear, product, weights)
    took = {"plain torch" if room is None else "cuBLAS": plain}
    if room is not None:
        from multimodel_server.kernels import triton_linear

        for tiling in tilings(product, room):
            name = f"Triton ({tiling.outs} x {tiling.width})"
            took[name] = timed(partial(triton_linear.linear, tiling=tiling), product, weights)
    return [f"{name} {value * 1e6:.1f} µs" for name, value in took.items()], min(took.values())


def _on_host(linear: kernels.LinearKernel, product: Product, weights: list[Weights]) -> float:
    rows = torch.randn(product.rows, product.width, dtype=product.dtype)
    return seconds(lambda: [linear(rows, *each) for each in weights], "cpu") / len(weights)


def _matrices(shape: str) -> Mapping[str, tuple[int, int]]:
    """Return outputs and inputs of a layer's products, and of the head."""
    config = SHAPES[shape][1]
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    return {
        "queries, keys, values": (heads + 2 * config.num_key_value_heads * config.head_dim, width),
        "attention's output": (width, heads),
        "gate and up": (2 * config.intermediate_size, width),
        "down": (width, config.intermediate_size),
        "head": (config.vocab_size, width),
    }
