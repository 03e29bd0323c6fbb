"""Memory that leaves its addresses and comes back: the host's own, the weights' arena and the cache that grows."""

import itertools
import re
from pathlib import Path

import pytest
import torch

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine import host
from multimodel_server.engine.arena import ALIGNMENT, arena_bytes
from multimodel_server.engine.capacity import CacheShape
from multimodel_server.engine.kv_cache import KvCache
from multimodel_server.engine.loading import load, size_after_capture
from multimodel_server.engine.model_memory import ModelMemory
from multimodel_server.memory import granule, reserve

CPU = torch.device("cpu")
SIZE = 48 << 20


def resident():
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) << 10


def test_a_region_takes_memory_when_it_is_used_and_gives_all_of_it_back():
    before = resident()
    region = reserve(SIZE, CPU)
    region.back(0, SIZE)
    address = region.bytes.data_ptr()
    assert not region.bytes.any()
    region.bytes.fill_(7)
    assert resident() - before > SIZE - (8 << 20)
    region.drop()
    assert resident() - before < SIZE // 4
    assert region.bytes.data_ptr() == address
    region.back(0, SIZE)
    assert not region.bytes.any()


def test_a_region_lives_as_long_as_its_views():
    view = reserve(SIZE, CPU).bytes[-100:]
    view.fill_(3)
    assert view.sum() == 300


SHAPE = CacheShape(layers=3, kv_heads=2, head_dim=8, block_size=16, element_size=2)


@pytest.fixture
def cache():
    return KvCache(SHAPE, torch.bfloat16, CPU, most=100, blocks=2)


def test_a_cache_has_room_for_its_shape_and_no_two_blocks_share_memory(cache):
    assert cache.tensor.shape == (3, 2, 100, 16, 2, 8)
    assert not cache.tensor.any()
    numbers = torch.arange(cache.tensor[..., 0, 0, 0].numel()).view(3, 2, 100, 1, 1, 1) % 251
    cache.tensor.copy_(numbers.expand_as(cache.tensor))
    assert torch.equal(cache.tensor, numbers.expand_as(cache.tensor).bfloat16())
    assert all(part.is_contiguous() for layer in cache.tensor for part in layer)


def test_a_cache_grows_in_place_and_keeps_what_it_holds(cache):
    address = cache.tensor.data_ptr()
    cache.tensor[:, :, :2] = 5
    cache.grow(80)
    assert (cache.blocks, cache.tensor.data_ptr()) == (80, address)
    assert (cache.tensor[:, :, :2] == 5).all()
    assert cache.bytes % granule(CPU) == 0
    assert 80 * SHAPE.block_bytes <= cache.bytes <= 80 * SHAPE.block_bytes + cache.rounding


def test_a_cache_that_was_dropped_is_empty_and_grows_again(cache):
    cache.tensor.fill_(5)
    assert cache.drop() == 2
    assert (cache.blocks, cache.bytes) == (0, 0)
    cache.grow(2)
    assert not cache.tensor[:, :, :2].any()


def test_the_cache_gets_its_part_of_what_capturing_left(cache):  # bugs 26, 27
    free, address = [64 * SHAPE.block_bytes], cache.tensor.data_ptr()

    class Runner:
        def capture(self):
            assert cache.blocks == 2
            free[0] -= 20 * SHAPE.block_bytes

    size_after_capture(cache, Runner(), KvSize(memory_fraction=0.9), lambda: free[0])
    assert 0.9 * 44 - 5 < cache.blocks < 0.9 * (44 + 2) + 1
    assert cache.bytes <= free[0] + 2 * SHAPE.block_bytes
    assert cache.tensor.data_ptr() == address


@pytest.fixture
def loaded(tiny_model):
    return load(EngineConfig(tiny_model("qwen3_untied_biased").path, kv_size=KvSize(context_len=64)), lambda *_: None)


def test_all_weights_lie_in_one_arena_aligned_and_apart(loaded):
    parameters = list(loaded.runner.decoder.parameters())
    places = sorted((parameter.data_ptr(), parameter.nbytes) for parameter in parameters)
    assert all(start % ALIGNMENT == 0 for start, _ in places)
    assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(places))
    first, (last, size) = places[0][0], places[-1]
    assert last + size - first <= loaded.memory.arena.size == arena_bytes(loaded.runner.decoder)
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1


def test_kept_weights_come_back_bit_by_bit(loaded):
    arena, decoder = loaded.memory.arena, loaded.runner.decoder
    before = {name: weight.clone() for name, weight in decoder.named_parameters()}
    arena.keep()
    arena.sleep()
    assert not any(weight.any() for weight in decoder.parameters())
    assert arena.wake()
    assert all(torch.equal(before[name], weight) for name, weight in decoder.named_parameters())


def test_weights_that_are_not_kept_are_not_back_by_themselves(loaded):
    arena = loaded.memory.arena
    arena.keep()
    arena.forget()
    arena.sleep()
    assert not arena.wake()
    assert not any(weight.any() for weight in loaded.runner.decoder.parameters())


@pytest.mark.parametrize(("free", "kept"), [(0, False), (1 << 40, True)])
def test_a_host_without_room_keeps_no_weights(loaded, monkeypatch, free, kept):  # bug 37
    memory = ModelMemory(loaded.memory.arena, loaded.memory.cache, torch.device("meta"), pytest.fail)
    monkeypatch.setattr(host, "available_memory", lambda: free)
    memory.sleep(keep_weights=True)
    assert memory.arena.is_kept is kept
