"""Kernels that are compiled while requests wait for them: there should be none, so each is told."""

from collections.abc import Callable
from typing import Any


def watch_compilations(tell: Callable[[str], None]) -> None:
    """Have `tell` called with the name of each kernel that Triton compiles, or loads, from now on."""
    from triton import knobs  # only engines on a CUDA device have it imported

    before = knobs.runtime.jit_post_compile_hook

    def note(**told: Any) -> bool | None:
        tell(told["repr"])
        return before(**told) if before is not None else None

    knobs.runtime.jit_post_compile_hook = note
