"""Top-k, top-p and min-p in Triton, exact and without sorting: a search for the last token that stays.

Tokens are compared by keys: the bits of the logit, reordered so that they compare as whole numbers do, above the
inverted token id. No two tokens have the same key, so that exactly k tokens can be kept among equal ones, and every
filter keeps the tokens from some key on. Two bounds close in on that key; each step counts or weighs the tokens above a
key between them. The search goes through a short list of the row's highest tokens, if that holds all that can stay,
else through the row. Weights are whole numbers of a tiny unit: they add up alike in any order.
"""

# mypy: disable-error-code="untyped-decorator"

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63))
"""Below every key."""
HIGHEST = tl.constexpr(2**63 - 1)
LARGEST_ID = tl.constexpr(2**31 - 1)
WEIGHT_OF_PEAK = tl.constexpr(2.0**44)
"""The likeliest token's weight in units; half a million such tokens still add up in 64 bits."""
MOST_TAIL = tl.constexpr(16384)
"""As many tokens of the lowest weight listed as would make up what top-p leaves out: there are seldom more below."""


@triton.jit
def heights(logits: tl.tensor, token: tl.tensor, vocabulary: tl.constexpr) -> tl.tensor:
    """Return one row's logits in float32: infinite for what is no number, the lowest beyond the vocabulary."""
    height = tl.load(logits + token, mask=token < vocabulary, other=-float("inf")).to(tl.float32)
    return tl.where(height == height, height, float("inf"))


@triton.jit
def key_of(height: tl.tensor, token: tl.tensor) -> tl.tensor:
    """Return the keys of tokens; of equal heights, the smaller id has the higher key."""
    bits = tl.where(height == 0, 0.0, height).to(tl.int32, bitcast=True)  # there is one zero only
    ordered = bits ^ ((bits >> 31) & LARGEST_ID)
    return (ordered.to(tl.int64) << 32) + (LARGEST_ID - token)


@triton.jit
def height_of(key: tl.tensor) -> tl.tensor:
    """Return the logits that keys were made of."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & LARGEST_ID)).to(tl.float32, bitcast=True)


@triton.jit
def token_of(key: tl.tensor) -> tl.tensor:
    """Return the token ids that keys were made of."""
    return LARGEST_ID - (key & LARGEST_ID).to(tl.int32)


@triton.jit
def weight_of(height: tl.tensor, peak: tl.tensor, scale: tl.tensor, used: tl.tensor) -> tl.tensor:
    """Return the weights of tokens in whole units, 0 where they are not used."""
    return (tl.where(used, tl.exp((height - peak) * scale), 0.0) * WEIGHT_OF_PEAK).to(tl.int64)


@triton.jit
def keeps_all(top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, vocabulary: tl.constexpr) -> tl.tensor:
    """Tell whether a row asks for no filter."""
    return ((top_k <= 0) | (top_k >= vocabulary)) & (top_p >= 1) & (min_p <= 0)


@triton.jit
def floor_of(
    tops: tl.tensor,  # [padded_tiles]: the highest logits of the row's parts
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    temperature: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    vocabulary: tl.constexpr,
    tiles: tl.constexpr,
    padded_tiles: tl.constexpr,
) -> tl.tensor:
    """Return a logit below which hardly a token stays."""
    floor = peak + tl.log(min_p) * temperature
    if (top_k > 0) & (top_k < vocabulary):
        # At least k tokens are as high as the k-th highest part, and seldom many more.
        place = tl.arange(0, padded_tiles) == tl.minimum(top_k, tiles) - 1
        floor = tl.max(tl.where(place, tl.sort(tops, descending=True), -float("inf")), 0)
    elif top_p < 1:
        weight = tl.sum(tl.exp((tops - peak) * scale), 0)
        floor = peak + tl.log((1.0 - top_p) * weight / MOST_TAIL) * temperature
    return floor


@triton.jit
def read_keys(
    logits: tl.tensor, listed: tl.tensor, has_list: tl.tensor, length: tl.tensor, start: tl.tensor, chunk: tl.constexpr
) -> tl.tensor:
    """Return some keys, of the list if there is one, else of the row; `LOWEST` beyond `length`."""
    place = start + tl.arange(0, chunk)
    if has_list:
        keys = tl.load(listed + place, mask=place < length, other=LOWEST)
    else:
        height = tl.load(logits + place, mask=place < length, other=0.0).to(tl.float32)
        keys = tl.where(place < length, key_of(height, place), LOWEST)
    return keys


@triton.jit
def weigh(
    logits: tl.tensor,
    listed: tl.tensor,
    has_list: tl.tensor,
    length: tl.tensor,
    floor: tl.tensor,
    by_weight: tl.constexpr,
    peak: tl.tensor,
    scale: tl.tensor,
    chunk: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the number (or weight) of the keys that are no less than `floor`, the least of them, and the next one."""
    total = tl.zeros((chunk,), tl.int64)
    least = tl.full((chunk,), HIGHEST, tl.int64)
    below = tl.full((chunk,), LOWEST, tl.int64)
    for start in range(0, length, chunk):
        keys = read_keys(logits, listed, has_list, length, start, chunk)
        inside = keys >= floor
        used = inside & (keys > LOWEST)
        total += weight_of(height_of(keys), peak, scale, used) if by_weight else tl.where(used, 1, 0)
        least = tl.minimum(least, tl.where(inside, keys, HIGHEST))
        below = tl.maximum(below, tl.where(inside, LOWEST, keys))
    return tl.sum(total, 0), tl.min(least, 0), tl.max(below, 0)


@triton.jit
def narrow(
    logits: tl.tensor,
    listed: tl.tensor,
    has_list: tl.tensor,
    length: tl.tensor,
    low: tl.tensor,
    target: tl.tensor,
    by_weight: tl.constexpr,
    peak: tl.tensor,
    scale: tl.tensor,
    chunk: tl.constexpr,
) -> tl.tensor:
    """Return the highest key from which on keys come to a positive `target`, or `low` if none above that does."""
    high = key_of(peak, 0)
    while low < high:
        middle = (low >> 1) + (high >> 1) + (low & high & 1) + 1
        total, least, below = weigh(logits, listed, has_list, length, middle, by_weight, peak, scale, chunk)
        if total >= target:
            low = least
        else:
            high = below
    return low


@triton.jit
def least_kept(
    logits: tl.tensor,  # one row
    listed: tl.tensor,  # the keys of its highest tokens
    held: tl.tensor,  # how many there are; more than `room` are not all listed
    weight: tl.tensor,  # of the row
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    temperature: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    vocabulary: tl.constexpr,
    room: tl.constexpr,
    chunk: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the least key that stays, whether the list holds all that stay, and how many keys to look through."""
    counts, weighs = (top_k > 0) & (top_k < vocabulary), top_p < 1
    has_list = held <= room
    low = tl.full((), LOWEST, tl.int64)
    if counts:
        has_list = has_list & (held >= top_k)
    elif weighs & has_list:
        found, _, _ = weigh(logits, listed, True, held, low, True, peak, scale, chunk)
        has_list = found >= _part(weight, top_p)
    length = tl.where(has_list, held, vocabulary)
    if counts:
        low = narrow(logits, listed, has_list, length, low, top_k.to(tl.int64), False, peak, scale, chunk)
        weight, _, _ = weigh(logits, listed, has_list, length, low, True, peak, scale, chunk)
    if weighs:
        low = narrow(logits, listed, has_list, length, low, _part(weight, top_p), True, peak, scale, chunk)
    return tl.maximum(low, key_of(peak + tl.log(min_p) * temperature, LARGEST_ID)), has_list, length


@triton.jit
def _part(weight: tl.tensor, top_p: tl.tensor) -> tl.tensor:
    """Return what top-p asks for of a weight; more than nothing, so that the likeliest token always stays."""
    return tl.maximum((weight.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64), 1)
