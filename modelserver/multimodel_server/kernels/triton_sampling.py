"""The choice of next tokens in Triton: by tiles of the vocabulary, then one program a row.

First the highest logit of each tile is found. Then all tokens of a tile race; of a row that asks for top-k, top-p or
min-p, the tokens that may stay are listed instead. Last, one program a row takes the first of all its tiles, or has the
listed tokens that do stay race. What is drawn, and by which numbers, is told in `reference_sampling`.
"""

# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from multimodel_server.kernels import reference_sampling
from multimodel_server.kernels.reference_sampling import SamplingRows
from multimodel_server.kernels.triton_filters import (
    LARGEST_ID,
    floor_of,
    height_of,
    heights,
    keeps_all,
    key_of,
    least_kept,
    read_keys,
    token_of,
    weight_of,
)
from multimodel_server.kernels.triton_random import exponential, tile_words, token_words

TILE = 1024
"""Tokens of one program: with common vocabularies, a single row keeps every processor busy."""
ROOM = 16384
"""Tokens of one row that can be listed: a trained model leaves some hundreds, unless the temperature is high."""
CHUNK = 2048
"""Listed tokens that are looked at together."""
SMALLEST_TEMPERATURE = tl.constexpr(reference_sampling.SMALLEST_TEMPERATURE)
SETTINGS = SamplingRows._fields


def sample(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Return ids [rows] int64 of next tokens, as `reference_sampling.sample` does."""
    count, vocabulary = logits.shape
    tiles = triton.cdiv(vocabulary, TILE)
    shape = {"vocabulary": vocabulary, "stride": logits.stride(0)}
    padded = {"tiles": tiles, "padded_tiles": triton.next_power_of_2(tiles)}
    peaks = logits.new_empty((count, tiles), dtype=torch.float32)
    times, winners = torch.empty_like(peaks), torch.empty_like(peaks, dtype=torch.int32)
    weights = torch.empty_like(peaks, dtype=torch.int64)
    listed = logits.new_empty((count, ROOM), dtype=torch.int64)
    held = logits.new_empty((count,), dtype=torch.int32)
    ids = logits.new_empty((count,), dtype=torch.int64)
    _survey[(count, tiles)](logits, peaks, held, **shape, tile=TILE, num_warps=4)
    found = (times, winners, weights, listed, held)
    _race[(count, tiles)](logits, *rows, peaks, *found, **shape, **padded, room=ROOM, tile=TILE, num_warps=4)
    _choose[(count,)](logits, *rows, peaks, *found, ids, **shape, **padded, room=ROOM, chunk=CHUNK, num_warps=8)
    return ids


@triton.jit
def _survey(
    logits: tl.tensor,  # [rows, vocabulary]
    peaks: tl.tensor,  # [rows, tiles] float32: each tile's highest logit
    held: tl.tensor,  # [rows] int32: tokens that are listed, none so far
    vocabulary: tl.constexpr,
    stride: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    row, number = tl.program_id(0), tl.program_id(1)
    token = number * tile + tl.arange(0, tile)
    height = heights(logits + row.to(tl.int64) * stride, token, vocabulary)
    tl.store(peaks + row * tl.num_programs(1) + number, tl.max(height, 0))
    if number == 0:
        tl.store(held + row, 0)


@triton.jit(do_not_specialize_on_alignment=SETTINGS)
def _race(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    peaks: tl.tensor,
    times: tl.tensor,  # [rows, tiles] float32: when each tile's first token arrives
    winners: tl.tensor,  # [rows, tiles] int32: that token
    weights: tl.tensor,  # [rows, tiles] int64: of each tile, where tokens are listed
    listed: tl.tensor,  # [rows, room] int64: the keys of tokens that may stay, in any order
    held: tl.tensor,
    vocabulary: tl.constexpr,
    stride: tl.constexpr,
    tiles: tl.constexpr,
    padded_tiles: tl.constexpr,
    room: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    row, first = tl.program_id(0), tl.program_id(1) * tile
    spot = row * tiles + tl.program_id(1)
    token = first + tl.arange(0, tile)
    height = heights(logits + row.to(tl.int64) * stride, token, vocabulary)
    tops = _tops(peaks + row * tiles, tiles, padded_tiles)
    peak = tl.max(tops, 0)
    warmth, most = tl.load(temperature + row), tl.load(top_k + row)
    share, least_share = tl.load(top_p + row), tl.load(min_p + row)
    scale = _scale(warmth)
    if (warmth <= 0) | (tl.abs(peak) == float("inf")):
        tl.store(times + spot, peak - tl.max(height, 0))
        tl.store(winners + spot, first + tl.argmax(height, 0))
    elif keeps_all(most, share, least_share, vocabulary):
        words = tile_words(tl.load(seed + row), tl.load(position + row), first, tile)
        arrival = exponential(words) * tl.exp((peak - height) * scale)
        time = tl.min(arrival, 0)
        tl.store(times + spot, time)
        tl.store(winners + spot, tl.min(tl.where(arrival == time, token, LARGEST_ID), 0))
    else:
        floor = floor_of(tops, most, share, least_share, warmth, peak, scale, vocabulary, tiles, padded_tiles)
        numbered = height > -float("inf")
        may_stay = numbered & (height >= floor)
        count = tl.sum(may_stay.to(tl.int32), 0)
        place = tl.atomic_add(held + row, count) + tl.cumsum(may_stay.to(tl.int32), 0) - 1
        tl.store(listed + row * room + place, key_of(height, token), mask=may_stay & (place < room))
        tl.store(weights + spot, tl.sum(weight_of(height, peak, scale, numbered), 0))


@triton.jit(do_not_specialize_on_alignment=SETTINGS)
def _choose(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    peaks: tl.tensor,
    times: tl.tensor,
    winners: tl.tensor,
    weights: tl.tensor,
    listed: tl.tensor,
    held: tl.tensor,
    ids: tl.tensor,  # [rows] int64
    vocabulary: tl.constexpr,
    stride: tl.constexpr,
    tiles: tl.constexpr,
    padded_tiles: tl.constexpr,
    room: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    number = tl.arange(0, padded_tiles)
    peak = tl.max(_tops(peaks + row * tiles, tiles, padded_tiles), 0)
    warmth, most = tl.load(temperature + row), tl.load(top_k + row)
    share, least_share = tl.load(top_p + row), tl.load(min_p + row)
    is_finite = tl.abs(peak) < float("inf")
    chosen = tl.full((), -1, tl.int32)
    if is_finite & ((warmth <= 0) | keeps_all(most, share, least_share, vocabulary)):
        time = tl.load(times + row * tiles + number, mask=number < tiles, other=float("inf"))
        chosen = tl.load(winners + row * tiles + tl.argmin(time, 0))
    elif is_finite:
        line, keys, scale = logits + row.to(tl.int64) * stride, listed + row * room, _scale(warmth)
        weight = tl.sum(tl.load(weights + row * tiles + number, mask=number < tiles, other=0), 0)
        cut, has_list, length = least_kept(
            line,
            keys,
            tl.load(held + row),
            weight,
            most,
            share,
            least_share,
            warmth,
            peak,
            scale,
            vocabulary,
            room,
            chunk,
        )
        line_seed, line_position = tl.load(seed + row), tl.load(position + row)
        chosen = _first_of_kept(line, keys, has_list, length, cut, line_seed, line_position, peak, scale, chunk)
    tl.store(ids + row, chosen.to(tl.int64))


@triton.jit
def _first_of_kept(
    line: tl.tensor,
    listed: tl.tensor,
    has_list: tl.tensor,
    length: tl.tensor,
    cut: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    chunk: tl.constexpr,
) -> tl.tensor:
    """Return the token that arrives first of those that stay."""
    best = float("inf")
    chosen = LARGEST_ID
    for start in range(0, length, chunk):
        keys = read_keys(line, listed, has_list, length, start, chunk)
        token = token_of(keys)
        arrival = exponential(token_words(seed, position, token)) * tl.exp((peak - height_of(keys)) * scale)
        arrival = tl.where(keys >= cut, arrival, float("inf"))
        time = tl.min(arrival, 0)
        winner = tl.min(tl.where(arrival == time, token, LARGEST_ID), 0)
        chosen = tl.where((time < best) | ((time == best) & (winner < chosen)), winner, chosen)
        best = tl.minimum(time, best)
    return chosen


@triton.jit
def _tops(peaks: tl.tensor, tiles: tl.constexpr, padded_tiles: tl.constexpr) -> tl.tensor:
    """Return the highest logits of a row's tiles."""
    number = tl.arange(0, padded_tiles)
    return tl.load(peaks + number, mask=number < tiles, other=-float("inf"))


@triton.jit
def _scale(temperature: tl.tensor) -> tl.tensor:
    """Return what differences of logits are multiplied by."""
    return tl.div_rn(1.0, tl.maximum(temperature, SMALLEST_TEMPERATURE))
