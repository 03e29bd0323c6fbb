"""Compiles every Triton kernel for Hopper where there need be no device: the calls are made, nothing is launched.

Run as a script, it prints a line for each kernel: the registers of its threads that did not fit, and the accesses to
memory before it waits for the kernel ahead, if it may begin while that one runs.
"""

import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from multimodel_server.kernels import (
    HeadNorms,
    PagedLayout,
    SamplingRows,
    triton_activation,
    triton_attention,
    triton_heads,
    triton_linear,
    triton_norm,
    triton_sampling,
)
from multimodel_server.kernels.linear_plan import Product, Room, tilings

HOPPER = GPUTarget("cuda", 90, 32)
ROOM = Room(132, 227 * 1024)
INSPECTOR = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
OVERLAPPING = (triton_activation, triton_attention, triton_heads, triton_linear, triton_norm)
ACCESS = re.compile(r"\b(?:ld|st|atom|red)\.global|\bcp\.async\.(?:c[ag]|bulk)")
TOKENS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCABULARY = 4, 8, 2, 128, 4096, 50_000


class Hopper:
    """What Triton asks of a driver before it launches anything."""

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def main() -> None:
    driver.set_active(Hopper())
    run = JITFunction.run

    def compile_only(kernel, *args, warmup, **settings):
        compiled = run(kernel, *args, warmup=True, **settings)
        print(kernel.__name__, spilled(compiled.asm["cubin"]), accesses_before_waiting(compiled), flush=True)

    JITFunction.run = compile_only
    for module in OVERLAPPING:
        module.overlap = lambda _: {"overlaps": True, "launch_pdl": True}
    for call in calls():
        call()


def accesses_before_waiting(compiled) -> int:
    """Return how much is read or written before the kernel ahead has ended, if this one may begin before that."""
    if not compiled.metadata.launch_pdl:
        return 0
    before, after = compiled.asm["ptx"].split("griddepcontrol.wait")
    assert ACCESS.search(after), "the pattern finds nothing"
    return len(ACCESS.findall(before))


def spilled(code: bytes) -> int:
    """Return the bytes of local memory that a thread has in place of registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = subprocess.run([INSPECTOR, "--dump-resource-usage", file.name], capture_output=True, check=True).stdout
    fields = dict(field.split(":", 1) for field in usage.decode().split() if ":" in field)
    return int(fields["STACK"]) + int(fields["LOCAL"])


def calls():
    zeros = partial(torch.zeros, dtype=torch.bfloat16)
    hidden, weight, query = zeros(TOKENS, WIDTH), zeros(WIDTH), zeros(TOKENS, HEADS, HEAD_DIM)
    yield partial(triton_norm.rms_norm, hidden, weight, 1e-6)
    yield partial(triton_norm.add_rms_norm, hidden, hidden, weight, 1e-6, plus_one=True)
    yield partial(triton_activation.silu_mul, hidden)
    yield partial(triton_activation.gelu_mul, hidden)
    yield partial(triton_sampling.sample, zeros(TOKENS, VOCABULARY).float(), sampling_rows())
    for rows in (1, TOKENS):
        for bias in (None, zeros(WIDTH)):
            (tiling, *_) = tilings(Product(rows, WIDTH, WIDTH, torch.bfloat16, bias is not None), ROOM)
            yield partial(triton_linear.linear, zeros(rows, WIDTH), zeros(WIDTH, WIDTH), bias, tiling=tiling)
    for cache_dtype in (torch.bfloat16, torch.float8_e4m3fn):
        caches = torch.zeros(2, 8, 16, KV_HEADS, HEAD_DIM).to(cache_dtype)
        yield partial(prepare_heads, zeros, caches)
        for lengths, columns in (((1,) * TOKENS, 4), ((1,) * TOKENS, 64), ((TOKENS,), 4)):
            yield partial(triton_attention.paged_attention, query, *caches, layout(lengths, columns), 0.1)


def prepare_heads(zeros, caches):
    weight, angles = zeros(HEAD_DIM), torch.zeros(TOKENS, HEAD_DIM // 2)
    packed, norms = zeros(TOKENS, HEADS + 2 * KV_HEADS, HEAD_DIM), HeadNorms(weight, weight, 1e-6, plus_one=False)
    return triton_heads.prepare_heads(packed, HEADS, norms, (angles, angles), *caches, torch.arange(TOKENS))


def sampling_rows():
    number, whole = torch.zeros(TOKENS), torch.zeros(TOKENS, dtype=torch.int64)
    return SamplingRows(number, whole.int(), number, number, whole, whole)


def layout(lengths, columns):
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    tables = torch.zeros(len(lengths), columns, dtype=torch.int32)
    totals = torch.ones(len(lengths), dtype=torch.int32)
    return PagedLayout(tables, starts, totals, torch.arange(TOKENS), lengths, lengths)


if __name__ == "__main__":
    main()
