"""Paged attention in Triton: one kernel for decoding, prompt chunks and steps that mix them.

A program takes one KV head of some tokens: all query heads that share it are rows of one tile, so that even a single
token fills the matrix units. It walks over the keys with an online softmax (arXiv 1805.02867) in base two. Where few
sequences decode, several programs share the keys of a text, and a second kernel merges what they found: the last bits
of an answer then depend on how many sequences decode beside it.
"""

# mypy: disable-error-code="untyped-decorator"

from functools import cache, lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from multimodel_server.kernels.attention_plan import (
    MOST_SPLITS,
    Tiling,
    leading_decodes,
    padded,
    splits,
    tiling,
)
from multimodel_server.kernels.layout import PagedLayout
from multimodel_server.kernels.triton_overlap import overlap, take_turn

INTERPRETED_PROCESSORS = 8
"""Processors that are planned for where there is no device and Triton interprets."""
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
"""Where the running maximum starts: below all scores, yet finite, so that rows that see nothing make no NaN."""
MERGE_WARPS = 8


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Return causal attention of the new tokens over their own sequences, as that of `reference_attention` does.

    Caches are contiguous. Of the layout's host tuples only the numbers of new tokens are read, so a captured step can
    be replayed with other texts.
    """
    call = _Call(query.contiguous(), key_cache, value_cache, layout, scale, window, soft_cap)
    output = torch.empty_like(call.query)
    decodes = _leading_decodes(layout)
    if decodes:
        _decode(call, output, decodes)
    if decodes < len(layout.host_query_lens):
        _prefill(call, output, decodes)
    return output


class _Call(NamedTuple):
    """The arguments of `paged_attention`."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    layout: PagedLayout
    scale: float
    window: int | None
    soft_cap: float | None

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.query.shape[1] // self.key_cache.shape[2]

    def tiles(self, *, decodes: bool) -> Tiling:
        sizes = self.query.element_size(), self.key_cache.element_size()
        return tiling(self.group, self.query.shape[2], *sizes, decodes=decodes)


def _decode(call: _Call, output: torch.Tensor, seqs: int) -> None:
    """Attend with the only new token of each of the first sequences, which stands at the place of its sequence."""
    heads, head_dim = output.shape[1:]
    block_size, kv_heads = call.key_cache.shape[1:3]
    tiles = call.tiles(decodes=True)
    table_tokens = call.layout.block_tables.shape[1] * block_size
    parts = splits(seqs, kv_heads, table_tokens, tiles.keys, _processors(output.device))
    if parts == 1:
        _launch(call, (seqs, kv_heads, 1), tiles, output, output, 0, seqs, decodes=True)
        return
    found = output.new_empty((seqs, heads, parts, head_dim), dtype=torch.float32)
    logs = output.new_empty((seqs, heads, parts), dtype=torch.float32)
    _launch(call, (seqs, kv_heads, parts), tiles, found, logs, 0, seqs, decodes=True)
    _merge[(seqs, heads)](
        found,
        logs,
        output,
        call.layout.seq_lens,
        parts,
        window=call.window,
        head_dim=head_dim,
        padded_dim=padded(head_dim),
        keys=tiles.keys,
        most_parts=MOST_SPLITS,
        num_warps=MERGE_WARPS,
        **overlap(output.device),
    )


def _prefill(call: _Call, output: torch.Tensor, first: int) -> None:
    """Attend with the new tokens of the sequences from the `first` on, before which stand as many tokens."""
    tiles = call.tiles(decodes=False)
    seqs = len(call.layout.host_query_lens) - first
    # Each sequence may leave a remainder in a block of its own: as many blocks as there can be, some without work.
    blocks = (len(output) - first) // (tiles.rows // call.group) + seqs
    _launch(call, (blocks, call.key_cache.shape[2], 1), tiles, output, output, first, seqs, decodes=False)


def _launch(
    call: _Call,
    grid: tuple[int, int, int],
    tiles: Tiling,
    output: torch.Tensor,
    logs: torch.Tensor,
    first: int,
    seqs: int,
    *,
    decodes: bool,
) -> None:
    _attend[grid](
        call.query,
        call.key_cache,
        call.value_cache,
        output,
        logs,
        call.layout.block_tables,
        call.layout.query_start_loc,
        call.layout.seq_lens,
        first,
        seqs,
        call.layout.block_tables.stride(0),
        call.scale,
        window=call.window,
        soft_cap=call.soft_cap,
        kv_heads=call.key_cache.shape[2],
        group=call.group,
        head_dim=call.query.shape[2],
        padded_dim=padded(call.query.shape[2]),
        block_size=call.key_cache.shape[1],
        rows=tiles.rows,
        keys=tiles.keys,
        decodes=decodes,
        is_part=grid[2] > 1,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **overlap(output.device),
    )


@lru_cache(maxsize=4)
def _leading_decodes(layout: PagedLayout) -> int:
    """Count once for all layers of a step."""
    return leading_decodes(layout.host_query_lens)


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


# No value of these may bring a kernel of its own: nothing compiles while requests wait.
@triton.jit(
    do_not_specialize=("first", "seqs", "table_width"),
    do_not_specialize_on_alignment=("block_tables", "query_start_loc", "seq_lens"),
)
def _attend(
    query: tl.tensor,  # [tokens, kv_heads * group, head_dim]
    key_cache: tl.tensor,  # [blocks, block_size, kv_heads, head_dim]
    value_cache: tl.tensor,
    output: tl.tensor,  # as the query; of parts [tokens, kv_heads * group, parts, head_dim] float32
    logs: tl.tensor,  # of parts [tokens, kv_heads * group, parts] float32: the logarithms of their sums of weights
    block_tables: tl.tensor,
    query_start_loc: tl.tensor,
    seq_lens: tl.tensor,
    first: int,
    seqs: int,
    table_width: int,
    scale: float,
    window: tl.constexpr,
    soft_cap: tl.constexpr,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block_size: tl.constexpr,
    rows: tl.constexpr,
    keys: tl.constexpr,
    decodes: tl.constexpr,
    is_part: tl.constexpr,
    overlaps: tl.constexpr,
) -> None:
    """Attend with a block of one sequence's new tokens, by one KV head, to all keys that they see or to a part."""
    take_turn(overlaps)
    queries: tl.constexpr = rows // group
    kv_head = tl.program_id(1)
    if decodes:
        sequence = tl.program_id(0)
        first_token, asked, new = sequence, 0, 1
    else:
        block = tl.num_programs(0) - 1 - tl.program_id(0)  # The last blocks see most, so they start first.
        sequence = _sequence_of(block, query_start_loc, first, seqs, queries)
        first_token = tl.load(query_start_loc + sequence)
        new = tl.load(query_start_loc + sequence + 1) - first_token
        asked = (block - _first_block(first_token, sequence, first, queries)) * queries
        if asked >= new:
            return
    context = tl.load(seq_lens + sequence) - new
    begin = _first_seen(context + asked, window)
    end = context + tl.minimum(asked + queries, new)
    tile, last_tile = begin // keys, tl.cdiv(end, keys)
    if is_part:
        size = tl.cdiv(last_tile - tile, tl.num_programs(2))
        tile += tl.program_id(2) * size
        last_tile = tl.minimum(last_tile, tile + size)
        if tile >= last_tile:
            return

    row = tl.arange(0, rows)
    token = asked + row // group
    used = (row < queries * group) & (token < new)
    line = (first_token + token).to(tl.int64) * (kv_heads * group) + kv_head * group + row % group
    dims = tl.arange(0, padded_dim)
    held = (dims < head_dim)[None, :]
    asking = tl.load(query + line[:, None] * head_dim + dims[None, :], mask=used[:, None] & held, other=0.0)

    own = (context + token)[:, None]
    table = block_tables + sequence.to(tl.int64) * table_width
    position = tile * keys + tl.arange(0, keys)
    blocks = tl.load(table + position // block_size, mask=(position >= begin) & (position < end), other=0)
    weighted = tl.zeros((rows, padded_dim), tl.float32)
    divisor = tl.zeros((rows,), tl.float32)
    top = tl.full((rows,), LOWEST, tl.float32)
    for index in range(tile, last_tile):
        position = index * keys + tl.arange(0, keys)
        slot = blocks.to(tl.int64) * block_size + position % block_size
        place = ((slot * kv_heads + kv_head) * head_dim)[:, None] + dims[None, :]
        stored = ((position >= begin) & (position < end))[:, None] & held
        # A turn ahead: if the keys' addresses were loaded in the same turn, fewer tiles of keys would be on their way.
        blocks = tl.load(table + (position + keys) // block_size, mask=position + keys < end, other=0)
        known = tl.load(key_cache + place, mask=stored, other=0.0).to(asking.dtype)
        scores = _scores(tl.dot(asking, tl.trans(known), input_precision="tf32x3"), scale, soft_cap)
        seen = position[None, :] <= own
        if window is not None:
            seen &= position[None, :] > own - window
        scores = tl.where(seen, scores, -float("inf"))
        risen = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - risen[:, None])
        fade = tl.exp2(top - risen)
        divisor = divisor * fade + tl.sum(weights, 1)
        content = tl.load(value_cache + place, mask=stored, other=0.0).to(asking.dtype)
        weighted = tl.dot(weights.to(asking.dtype), content, weighted * fade[:, None], input_precision="tf32x3")
        top = risen

    divisor = tl.where(divisor == 0, 1.0, divisor)
    answer = weighted / divisor[:, None]
    if is_part:
        line = line * tl.num_programs(2) + tl.program_id(2)
        tl.store(logs + line, top + tl.log2(divisor), mask=used)
    place = line[:, None] * head_dim + dims[None, :]
    tl.store(output + place, answer.to(output.dtype.element_ty), mask=used[:, None] & held)


@triton.jit
def _sequence_of(
    block: tl.tensor, query_start_loc: tl.tensor, first: int, seqs: int, queries: tl.constexpr
) -> tl.tensor:
    """Return the sequence of a block of queries: the last one whose blocks do not begin after it."""
    low, high = first + 1, first + seqs
    while low < high:
        middle = (low + high) // 2
        if _first_block(tl.load(query_start_loc + middle), middle, first, queries) <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _first_block(first_token: tl.tensor, sequence: tl.tensor, first: int, queries: tl.constexpr) -> tl.tensor:
    """Return where the blocks of a sequence begin, if each before it has one to spare for a remainder."""
    return (first_token - first) // queries + sequence - first


@triton.jit
def _first_seen(position: tl.tensor, window: tl.constexpr) -> tl.tensor:
    """Return the first key that the token at a position sees."""
    return 0 if window is None else tl.maximum(position + 1 - window, 0)


@triton.jit
def _scores(products: tl.tensor, scale: float, soft_cap: tl.constexpr) -> tl.tensor:
    """Return scores to the base of two, softly capped: the hyperbolic tangent by a power that cannot overflow."""
    if soft_cap is None:
        scores = products * (scale * LOG2_E)
    else:
        shrunk = tl.exp2(tl.abs(products) * (scale * (-2.0 * LOG2_E / soft_cap)))
        bent = (1.0 - shrunk) / (1.0 + shrunk) * (soft_cap * LOG2_E)
        scores = tl.where(products < 0, -bent, bent)
    return scores


@triton.jit(do_not_specialize=("parts",), do_not_specialize_on_alignment=("seq_lens",))
def _merge(
    found: tl.tensor,  # [seqs, heads, parts, head_dim] float32
    logs: tl.tensor,  # [seqs, heads, parts] float32
    output: tl.tensor,  # [seqs, heads, head_dim]
    seq_lens: tl.tensor,
    parts: int,
    window: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    keys: tl.constexpr,
    most_parts: tl.constexpr,
    overlaps: tl.constexpr,
) -> None:
    """Average what the parts of a text hold for one head's token, by the weight of each in the whole."""
    take_turn(overlaps)
    end = tl.load(seq_lens + tl.program_id(0))
    tiles = tl.cdiv(end, keys) - _first_seen(end - 1, window) // keys
    used = tl.cdiv(tiles, tl.maximum(tl.cdiv(tiles, parts), 1))
    line = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    part = tl.arange(0, most_parts)
    log = tl.load(logs + line * parts + part, mask=part < used, other=LOWEST)
    weight = tl.where(part < used, tl.exp2(log - tl.max(log, 0)), 0.0)
    divisor = tl.sum(weight, 0)
    dims = tl.arange(0, padded_dim)
    held = (part < used)[:, None] & (dims < head_dim)[None, :]
    content = tl.load(found + (line * parts + part)[:, None] * head_dim + dims[None, :], mask=held, other=0.0)
    answer = tl.sum(weight[:, None] * content, 0) / tl.where(divisor == 0, 1.0, divisor)
    tl.store(output + line * head_dim + dims, answer.to(output.dtype.element_ty), mask=dims < head_dim)
