"""The operations of a decoder on plain tensors: this module alone chooses who computes them.

Callers import from here and never branch on the hardware. Every implementation takes the signatures of `reference`.
On CUDA devices that is Triton, unless it is missing or `MULTIMODEL_KERNELS=reference` says otherwise; but of the matrix
products it computes those alone that it was measured to compute faster than cuBLAS.
"""

import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch

from multimodel_server.kernels import native, reference, reference_attention, reference_sampling
from multimodel_server.kernels.layout import PagedLayout
from multimodel_server.kernels.linear_plan import Product, row_count
from multimodel_server.kernels.reference import HeadNorms, mix_experts, soft_capped
from multimodel_server.kernels.reference_sampling import SamplingRows

__all__ = [
    "HeadNorms",
    "LinearKernel",
    "PagedLayout",
    "SamplingRows",
    "add_rms_norm",
    "gelu_mul",
    "has_triton",
    "held_dtype",
    "linear",
    "linears",
    "mix_experts",
    "paged_attention",
    "prepare_heads",
    "rms_norm",
    "sample",
    "silu_mul",
    "soft_capped",
]

log = logging.getLogger(__name__)

Settings = ParamSpec("Settings")
Result = TypeVar("Result")
Kernel = Callable[Concatenate[torch.Tensor, Settings], Result]
LinearKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

linears: dict[Product, LinearKernel] = {}
"""Who computes products of few rows on this process's CUDA device, where that was measured; the others cuBLAS does."""


def _chosen(plain: Kernel[Settings, Result], triton_module: str) -> Kernel[Settings, Result]:
    """Return a kernel that its namesake in a Triton module computes where the first tensor is on a CUDA device."""

    @cache
    def on_cuda() -> Kernel[Settings, Result]:
        if not has_triton():
            return plain
        module = import_module(f"{__name__}.{triton_module}")
        return cast("Kernel[Settings, Result]", getattr(module, plain.__name__))

    @wraps(plain)
    def kernel(tensor: torch.Tensor, /, *args: Settings.args, **kwargs: Settings.kwargs) -> Result:
        return (on_cuda() if tensor.is_cuda else plain)(tensor, *args, **kwargs)

    return kernel


@cache
def has_triton() -> bool:
    """Tell once whether Triton computes on CUDA devices; a CPU engine never asks, nor imports it."""
    if os.environ.get("MULTIMODEL_KERNELS") == "reference":
        log.info("Kernels are computed in plain torch, as MULTIMODEL_KERNELS says")
        return False
    if find_spec("triton") is None:
        log.warning("Kernels are computed in plain torch, which is slow: triton is not installed")
        return False
    return True


add_rms_norm = _chosen(reference.add_rms_norm, "triton_norm")
gelu_mul = _chosen(reference.gelu_mul, "triton_activation")
paged_attention = _chosen(reference_attention.paged_attention, "triton_attention")
prepare_heads = _chosen(reference.prepare_heads, "triton_heads")
rms_norm = _chosen(reference.rms_norm, "triton_norm")
sample = _chosen(reference_sampling.sample, "triton_sampling")
silu_mul = _chosen(reference.silu_mul, "triton_activation")


def held_dtype(stored: torch.dtype, computed: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the element type to hold matrices in that are stored in one type and multiplied in another.

    It is the narrower one where `linear` can widen it on the way into registers, which costs no precision.
    """
    widens = stored is torch.bfloat16 and computed is torch.float32 and device.type == "cpu"
    return stored if widens and native.library() is not None else computed


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `rows W^T (+ bias)`, [tokens, out], in the type of `rows`; weights may be held in that of `held_dtype`."""
    if weight.dtype != rows.dtype:
        return native.linear(rows, weight, bias)
    count = row_count(len(rows)) if rows.is_cuda else None
    if count is None:
        return reference.linear(rows, weight, bias)
    return linears.get(Product.of(count, weight, bias), reference.linear)(rows, weight, bias)
