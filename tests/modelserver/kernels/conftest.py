"""Random paged layouts over poisoned caches, attention by its definition, and a mended Triton interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multimodel_server.kernels import PagedLayout

POISON = 3e38
"""Fills outputs that a kernel must write; `nan` fills what it must not read."""


@pytest.fixture(scope="session")
def run_compiler(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`run_compiler(script)`: what a script beside this file prints in a process that compiles; this one interprets."""

    def run(script: str) -> str:
        cache = str(tmp_path_factory.mktemp("triton"))
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
        command = [sys.executable, Path(__file__).with_name(script)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


@dataclass(frozen=True)
class Step:
    """The arguments of one call of `paged_attention`, and what each sequence's text holds in float64."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    layout: PagedLayout
    texts: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def on(self, device: str) -> "Step":
        """Return the step with its tensors on a device."""
        layout = replace(
            self.layout,
            **{name: value.to(device) for name, value in vars(self.layout).items() if isinstance(value, torch.Tensor)},
        )
        moved = (tensor.to(device) for tensor in (self.query, self.key_cache, self.value_cache))
        return Step(*moved, layout, tuple((keys.to(device), values.to(device)) for keys, values in self.texts))

    def with_sink(self) -> "Step":
        """Return the step with tables whose ends name the sink, which holds zeros."""
        self.key_cache[0] = self.value_cache[0] = 0.0
        tables = self.layout.block_tables.clone()
        for row, total in zip(tables, self.layout.host_seq_lens, strict=True):
            row[-(-total // self.key_cache.shape[1]) :] = 0
        return replace(self, layout=replace(self.layout, block_tables=tables))

    def truth(self, scale: float, window: int | None = None, soft_cap: float | None = None) -> torch.Tensor:
        """Return attention by its definition, in float64; zeros for a sequence of no length."""
        output, token = torch.zeros_like(self.query, dtype=torch.float64), 0
        for (keys, values), new in zip(self.texts, self.layout.host_query_lens, strict=True):
            if len(keys) and new:
                query = self.query[token : token + new].double()
                output[token : token + new] = _attention(query, keys, values, scale, window, soft_cap)
            token += new
        return output


def _attention(query, keys, values, scale, window, soft_cap):
    """Attend with [new, heads, head_dim] to a text [total, kv_heads, head_dim] that ends with the new tokens."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (text.repeat_interleave(group, dim=1) for text in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
    if soft_cap is not None:
        scores = (scores / soft_cap).tanh() * soft_cap
    positions = torch.arange(len(keys), device=query.device)
    own = positions[len(keys) - len(query) :].unsqueeze(1)
    hidden = positions > own
    if window is not None:
        hidden |= positions <= own - window
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


@pytest.fixture
def make_step() -> Callable[..., Step]:
    """Return what draws a step of sequences given as (context, new tokens); a context of -1 is a padding row."""
    return _make_step


def _make_step(
    lengths,
    *,
    group=4,
    kv_heads=2,
    head_dim=64,
    block_size=16,
    dtype=torch.float16,
    cache_dtype=None,
    seed=0,
    window=None,
):
    """Blocks of nobody, slots past an end and blocks before a window hold no numbers; table ends hold garbage."""
    cache_dtype = cache_dtype or dtype
    generator = torch.Generator().manual_seed(seed)
    totals = [context + new for context, new in lengths]
    counts = [-(-total // block_size) for total in totals]
    blocks = 1 + sum(counts) + 3
    free = (torch.randperm(blocks - 1, generator=generator) + 1).tolist()
    tables = [[free.pop() for _ in range(count)] for count in counts]
    caches = [torch.full((blocks, block_size, kv_heads, head_dim), torch.nan).to(cache_dtype) for _ in range(2)]
    texts = []
    for table, total, (_, new) in zip(tables, totals, lengths, strict=True):
        stored = [torch.randn((total, kv_heads, head_dim), generator=generator).to(cache_dtype) for _ in range(2)]
        unseen = 0 if window is None else max(0, total - new + 1 - window)
        for cache, text in zip(caches, stored, strict=True):
            for position in range(unseen, total):
                cache[table[position // block_size], position % block_size] = text[position]
        texts.append(tuple(text.double() for text in stored))
    width = max(counts) + 2
    garbage = torch.randint(-(2**31), 2**31 - 1, (len(lengths), width), generator=generator).int()
    for row, table in zip(garbage, tables, strict=True):
        row[: len(table)] = torch.tensor(table, dtype=torch.int32)
    news = [new for _, new in lengths]
    query = torch.randn((sum(news), kv_heads * group, head_dim), generator=generator).to(dtype)
    layout = PagedLayout(
        block_tables=garbage,
        query_start_loc=torch.tensor([0, *news]).cumsum(0).int(),
        seq_lens=torch.tensor(totals, dtype=torch.int32),
        slot_mapping=torch.zeros(sum(news), dtype=torch.int64),
        host_query_lens=tuple(news),
        host_seq_lens=tuple(totals),
    )
    return Step(query, *caches, layout, tuple(texts))


@pytest.fixture
def poisoned_outputs(monkeypatch) -> None:
    """Have every tensor that is allocated without contents begin with no numbers in it."""
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *sizes, _allocate=allocate, **how: _poison(_allocate(*sizes, **how)))
    allocate_like = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *sizes, **how: _poison(allocate_like(*sizes, **how)))


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch) -> None:
    """Mend Triton's interpreter, in three places.

    It multiplies the bits of bfloat16 as whole numbers; numpy no longer takes arrays of one element for indices; and
    each call within a kernel prepares the language anew, which takes most of the time.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton.language as tl
    from triton.runtime import interpreter

    multiply, patch_tensors = interpreter.InterpreterBuilder.create_dot, interpreter._patch_lang_tensor
    prepare, prepared = interpreter._patch_lang, set()

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, left, right, *others):
        return multiply(self, widened(left), widened(right), *others)

    def patch_lang_tensor(tensor, scope):
        patch_tensors(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def patch_lang(function):
        languages = [language for language in (tl, tl.core) if _sees(function, language)]
        if not prepared.issuperset(languages):
            prepared.update(languages)
            prepare(function)  # for good: in this process nothing compiles
        return interpreter._LangPatchScope()

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_lang_tensor)
    monkeypatch.setattr(interpreter, "_patch_lang", patch_lang)


def _sees(function, module) -> bool:
    return any(value is module for value in function.__globals__.values())
