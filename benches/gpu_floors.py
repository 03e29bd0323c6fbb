"""What the device can do at best: the floors that everything else is held against, and the attention kernel alone."""

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from gpu_measures import COPY, MATMUL, TO_DEVICE, Bar, Measure, Setting, Tell
from gpu_profile import Profiler

from multimodel_server import kernels
from multimodel_server.kernels import PagedLayout

REPEATS = 10
LAYERS = 8
"""Caches that are read in turn: together they are several times what a device keeps near its processors."""


def seconds(work: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    """Return what one call of `work` takes on the device, after a first one that is not counted."""
    work()
    if device == "cpu":
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            took.append(time.perf_counter() - began)
        return statistics.median(took)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks))


def floors(setting: Setting, tell: Tell) -> None:
    """Measure a copy within the device, a matrix product on random data, and a copy from pinned memory."""
    device, size = setting.device, 1 << (20 if setting.tiny else 32)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(256)
    target = torch.empty_like(source)
    rate = 2 * size / seconds(lambda: target.copy_(source), device)
    tell(Measure(COPY, rate / 1e12, "TB/s", notes=("bytes read and written",)))
    width = 128 if setting.tiny else 8192
    left, right = (torch.randn(width, width, dtype=torch.bfloat16, device=device) for _ in range(2))
    rate = 2 * width**3 / seconds(lambda: left @ right, device)
    tell(Measure(MATMUL, rate / 1e12, "TFLOP/s", notes=(f"{width} x {width} x {width}",)))
    host = torch.ones(size // 2, dtype=torch.uint8, pin_memory=device == "cuda")
    part = target[: size // 2]
    rate = size / 2 / seconds(lambda: part.copy_(host, non_blocking=True), device)
    tell(Measure(TO_DEVICE, rate / 1e9, "GB/s", notes=("from pinned memory",)))


def attention(setting: Setting, tell: Tell) -> None:
    """Measure one query token over a long text, all layers in one graph; heads as in Qwen3-8B."""
    context, block_size = (256 if setting.tiny else 16384), 16
    heads, kv_heads, dim, dtype = 32, 8, 128, torch.bfloat16
    device = torch.device(setting.device)
    blocks = context // block_size
    caches = torch.randn(LAYERS, 2, blocks + 1, block_size, kv_heads, dim, device=device, dtype=dtype)
    query = torch.randn(1, heads, dim, device=device, dtype=dtype)
    last = int((order := torch.randperm(blocks) + 1)[-1])
    layout = PagedLayout(
        block_tables=order.to(device, torch.int32).unsqueeze(0),
        query_start_loc=torch.tensor([0, 1], dtype=torch.int32, device=device),
        seq_lens=torch.tensor([context], dtype=torch.int32, device=device),
        slot_mapping=torch.tensor([last * block_size + block_size - 1], device=device),
        host_query_lens=(1,),
        host_seq_lens=(context,),
    )

    def all_layers() -> None:
        for keys, values in caches:
            kernels.paged_attention(query, keys, values, layout, dim**-0.5)

    run = all_layers if setting.device == "cpu" else _graph(all_layers)
    took = seconds(run, setting.device) / LAYERS
    profiler = Profiler(setting.device)
    profiler.start()
    run()
    profiler.stop()
    read = 2 * context * kv_heads * dim * dtype.itemsize
    rate = read / took / 1e12
    share = rate / setting.floor(COPY)
    name = f"attention alone, batch 1, {context} tokens, heads of the 8B"
    notes = (f"{took * 1e6:.1f} µs a layer", f"{rate:.2f} TB/s")
    tell(Measure(name, share, "%", Bar("≥", 0.7), notes, profiler.result(LAYERS)))


def _graph(work: Callable[[], object]) -> Callable[[], None]:
    """Return what replays all that `work` launches."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()  # compiles, which a capture cannot
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
