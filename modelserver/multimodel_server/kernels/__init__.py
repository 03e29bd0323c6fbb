"""The operations of a decoder on plain tensors: this module alone chooses who computes them.

Callers import from here and never branch on the hardware. Every implementation takes the signatures of `reference`.
"""

import torch

from multimodel_server.kernels import native, reference
from multimodel_server.kernels.layout import PagedLayout
from multimodel_server.kernels.reference import (
    add_rms_norm,
    gelu_mul,
    mix_experts,
    paged_attention,
    rms_norm,
    rotate,
    silu_mul,
    soft_capped,
    write_kv,
)

__all__ = [
    "PagedLayout",
    "add_rms_norm",
    "gelu_mul",
    "held_dtype",
    "linear",
    "mix_experts",
    "paged_attention",
    "rms_norm",
    "rotate",
    "silu_mul",
    "soft_capped",
    "write_kv",
]


def held_dtype(stored: torch.dtype, computed: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the element type to hold matrices in that are stored in one type and multiplied in another.

    It is the narrower one where `linear` can widen it on the way into registers, which costs no precision.
    """
    widens = stored is torch.bfloat16 and computed is torch.float32 and device.type == "cpu"
    return stored if widens and native.library() is not None else computed


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `rows W^T (+ bias)`, [tokens, out], in the type of `rows`; weights may be held in that of `held_dtype`."""
    chosen = reference.linear if weight.dtype == rows.dtype else native.linear
    return chosen(rows, weight, bias)
