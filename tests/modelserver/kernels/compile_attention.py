"""Compiles attention for Hopper without a device, and prints what came of it; run by a test, which interprets."""

import json
import sys

import torch
import triton
from compile_for_hopper import HOPPER, spilled
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from multimodel_server.kernels import PagedLayout, triton_attention
from multimodel_server.kernels.attention_plan import padded, tiling


def compiled(head_dim: int, cache: str, *, decodes: bool) -> dict[str, object]:
    """Return what a processor needs for the kernel, and the code that shows how it works."""
    tiles = tiling(4, head_dim, 2, 1 if cache == "*fp8e4nv" else 2, decodes=decodes)
    found = "*fp32" if decodes else "*bf16"
    aligned = {"query": "*bf16", "key_cache": cache, "value_cache": cache, "output": found, "logs": found}
    places = dict.fromkeys(("block_tables", "query_start_loc", "seq_lens"), "*i32")
    counts = dict.fromkeys(("first", "seqs", "table_width"), "i32")
    constants = {
        "window": None,
        "soft_cap": None,
        "kv_heads": 8,
        "group": 4,
        "head_dim": head_dim,
        "padded_dim": padded(head_dim),
        "block_size": 16,
        "rows": tiles.rows,
        "keys": tiles.keys,
        "decodes": decodes,
        "is_part": decodes,
        "overlaps": True,
    }
    signature = {**aligned, **places, **counts, "scale": "fp32", **dict.fromkeys(constants, "constexpr")}
    divisible = {(place,): [["tt.divisibility", 16]] for place in range(len(aligned))}
    source = ASTSource(triton_attention._attend, signature, constants, divisible)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    kernel = triton.compile(source, target=HOPPER, options=options)
    return {
        "shared_bytes": kernel.metadata.shared,
        "spilled_bytes": spilled(kernel.asm["cubin"]),
        "keys": tiles.keys,
        "ttgir": kernel.asm["ttgir"],
        "ptx": kernel.asm["ptx"],
    }


def specializations() -> list[str]:
    """Return the distinct kernels that steps of many shapes ask for; none of them is launched."""
    asked: set[str] = set()

    def record(self: JITFunction, *arguments: object, grid: object, warmup: bool, **named: object) -> None:
        bind = create_function_from_signature(self.signature, self.params, make_backend(HOPPER))
        _, specialization, options = bind(*arguments, **named)
        asked.add(f"{self.__name__} {specialization} {options}")

    JITFunction.run = record
    cache = torch.empty((40, 16, 8, 128), dtype=torch.bfloat16)
    for lengths in ((1,), (1,) * 3, (1,) * 16, (1,) * 17, (1,) * 40, (7,), (16, 16), (1, 1, 5), (1,) * 16 + (48, 2)):
        for table_width in (1, 16, 17, 33):
            tokens, seqs = sum(lengths), len(lengths)
            # Rows and entries of larger buffers, as a captured step has them, are aligned in every way.
            tables = torch.zeros((seqs + 1, table_width), dtype=torch.int32)[1:]
            seq_lens = torch.zeros(seqs + 3, dtype=torch.int32)[3:]
            starts = torch.zeros(seqs + 2, dtype=torch.int32)[1:]
            layout = PagedLayout(tables, starts, seq_lens, torch.zeros(tokens, dtype=torch.int64), lengths, ())
            query = torch.empty((tokens, 32, 128), dtype=torch.bfloat16)
            triton_attention.paged_attention(query, cache, cache, layout, 0.1)
    return sorted(asked)


if __name__ == "__main__":
    result = {
        "decode": compiled(128, "*bf16", decodes=True),
        "decode_narrow": compiled(64, "*bf16", decodes=True),
        "decode_wide_fp8": compiled(256, "*fp8e4nv", decodes=True),
        "prompt": compiled(128, "*bf16", decodes=False),
        "specializations": specializations(),
    }
    json.dump(result, sys.stdout)
