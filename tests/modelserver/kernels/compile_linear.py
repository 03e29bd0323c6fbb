"""Compiles products of few rows for Hopper without a device, and prints what came of it; run by a test."""

import json
import re
import sys

import torch
from compile_for_hopper import ROOM, Hopper, spilled
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from multimodel_server.kernels import triton_linear
from multimodel_server.kernels.linear_plan import ROW_COUNTS, Product, tilings

SHAPES = ((4096, 1024), (1024, 2048), (1024, 3072), (24576, 4096), (151936, 2560))
"""Of products in Qwen3, from those of few outputs to the head."""
LOADS = re.compile(r"ld\.global[^;]*;|cp\.async\.c[ag][^;]*;")
WIDE = re.compile(r"\.v4\.b32|, 0x10, ")


def main() -> None:
    driver.set_active(Hopper())
    triton_linear.overlap = lambda _: {"overlaps": True, "launch_pdl": True}
    run, kernels = JITFunction.run, []

    def compile_only(kernel, *args, warmup, **settings):
        code = run(kernel, *args, warmup=True, **settings)
        ptx, body = code.asm["ptx"], code.asm["ptx"].split("griddepcontrol.wait")
        kernels.append(
            {
                "name": kernel.__name__,
                "hash": code.hash,
                "tile": settings["tile_outs"] * settings.get("tile_width", 0),
                "lanes": 32 * settings["num_warps"],
                "spilled_bytes": spilled(code.asm["cubin"]),
                "shared_bytes": code.metadata.shared,
                "narrow_loads": [load for load in LOADS.findall(ptx) if not WIDE.search(load)],
                "loads_before_waiting": len(LOADS.findall(body[0])),
                "stores_before_waiting": body[0].count("st.global"),
                "waits": len(body) - 1,
                "tiles_on_their_way": code.asm["ttgir"].count("ttg.async_commit_group"),
                "uses_matrix_units": "mma.sync" in ptx,
            }
        )

    JITFunction.run = compile_only
    tried = {tiling for shape in SHAPES for rows in ROW_COUNTS for tiling in tried_for(rows, shape)}
    for tiling in sorted(tried):
        for count in (tiling.rows, max(1, tiling.rows - 3)):
            rows, weight = (torch.empty(size, 1024, dtype=torch.bfloat16) for size in (count, 64))
            triton_linear.linear(rows, weight, tiling=tiling)
    json.dump(kernels, sys.stdout)


def tried_for(rows, shape):
    return tilings(Product(rows, *shape, torch.bfloat16, has_bias=False), ROOM)


if __name__ == "__main__":
    main()
