"""Products with bfloat16 weights and float32 inputs in native code, compiled for this CPU when it is first wanted.

The reference has no such thing: torch would have to widen all weights first. Where there is no C compiler, and no code
compiled earlier, weights are simply held in float32.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
COMPILE_SECONDS = 60
MOST_ROWS = 64
"""With more rows, widening the weights costs less than it brings: the library's products are quicker than ours."""
WIDENED_AT_ONCE = 4096
"""Rows of the weights that are widened at a time, which bounds the memory that takes."""

log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled code, or None where there is none (or `MULTIMODEL_NATIVE=0` says not to use it)."""
    if os.environ.get("MULTIMODEL_NATIVE") == "0":
        return None
    try:
        path = _cache_folder() / f"native-{_digest()}.so"
        if not path.exists():
            _compile(path)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("Weights are held in float32, as native code cannot be had: %s", error)
        return None
    loaded.linear_bf16.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 3
    loaded.linear_bf16.restype = None
    return loaded


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `rows W^T (+ bias)`, [tokens, out] float32, for [tokens, in] float32 and contiguous [out, in] bfloat16."""
    result = rows.new_empty(len(rows), len(weight))
    code = library() if len(rows) <= MOST_ROWS else None
    if code is not None:
        rows = rows.contiguous()
        code.linear_bf16(weight.data_ptr(), rows.data_ptr(), result.data_ptr(), len(rows), rows.shape[1], len(weight))
    else:
        for first in range(0, len(weight), WIDENED_AT_ONCE):
            part = slice(first, first + WIDENED_AT_ONCE)
            result[:, part] = F.linear(rows, weight[part].float())
    return result if bias is None else result.add_(bias)


def _compile(path: Path) -> None:
    """Compile into a file of its own first: engines that start together must not meet half a library."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (cc); install gcc to halve the memory of bf16 models")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    command = [compiler, *FLAGS, "-o", str(unfinished), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    unfinished.rename(path)


def _cache_folder() -> Path:
    """Return a folder that is this user's own: what lies in a shared one might be somebody else's code."""
    cache_home, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    if cache_home:
        return Path(cache_home) / "multimodel" / "native"
    if home:
        return Path(home) / ".cache" / "multimodel" / "native"
    raise FileNotFoundError("neither XDG_CACHE_HOME nor HOME says where to keep it")


def _digest() -> str:
    """Return what the compiled code depends on: the source, the flags and the CPU's instructions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    instructions = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    content = (SOURCE.read_text(), *FLAGS, platform.machine(), instructions)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
