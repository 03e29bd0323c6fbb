"""The operations of a decoder on plain tensors: this module alone chooses who computes them.

Callers import from here and never branch on the hardware. Every implementation takes the signatures of `reference`.
"""

from multimodel_server.kernels.layout import PagedLayout
from multimodel_server.kernels.reference import (
    add_rms_norm,
    gelu_mul,
    linear,
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
    "linear",
    "mix_experts",
    "paged_attention",
    "rms_norm",
    "rotate",
    "silu_mul",
    "soft_capped",
    "write_kv",
]
