"""Kernels of decoding that begin while the one before them ends: what launching them takes is then not waited for.

Since Hopper, a kernel that says so lets the next one begin as soon as all of its own programs have ("programmatic
dependent launch"; graphs keep it). The rule that makes this safe: before `wait_for_last` nothing is read but weights,
and nothing is written. As each kernel so waits for the end of the one before it, its own end implies that of all.
"""

# mypy: disable-error-code="untyped-decorator"

import os
from collections.abc import Mapping
from functools import cache

import torch
import triton
import triton.language as tl

OVERLAPS_SINCE = (9, 0)
"""The compute capability of the first devices that can."""


@cache
def overlap(device: torch.device) -> Mapping[str, bool]:
    """Return the arguments of a launch that may overlap; with `MULTIMODEL_OVERLAP=0` none does, for comparison."""
    wanted = device.type == "cuda" and os.environ.get("MULTIMODEL_OVERLAP") != "0"
    if wanted and torch.cuda.get_device_capability(device) >= OVERLAPS_SINCE:
        return {"overlaps": True, "launch_pdl": True}
    return {"overlaps": False}


@triton.jit
def let_next_begin(overlaps: tl.constexpr) -> None:
    """Let the next kernel begin, once all programs of this one have come here; it waits by itself where it must."""
    if overlaps:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last(overlaps: tl.constexpr) -> None:
    """Wait for the end of the kernel before, and for all that it wrote to be seen."""
    if overlaps:
        tl.extra.cuda.gdc_wait()


@triton.jit
def take_turn(overlaps: tl.constexpr) -> None:
    """Do both, where there is nothing to do before the kernel ahead has ended."""
    let_next_begin(overlaps)
    wait_for_last(overlaps)
