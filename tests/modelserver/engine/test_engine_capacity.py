"""How large the cache gets, and which sizes are refused."""

import pytest
import torch

from multimodel_api.failures import FailureReason
from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine import host, loading
from multimodel_server.engine.batch import build_batch
from multimodel_server.engine.capacity import CacheShape, cache_blocks, default_size
from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk
from multimodel_server.errors import LoadError

SHAPE = CacheShape(layers=4, kv_heads=8, head_dim=64, block_size=16, element_size=2)  # 128 KiB a block
GIB = 1 << 30


def test_a_block_holds_keys_and_values_of_every_layer():
    assert SHAPE.block_bytes == 2 * 4 * 8 * 64 * 16 * 2


@pytest.mark.parametrize(
    ("size", "blocks"),
    [
        (KvSize(context_len=1), 1 + 1),
        (KvSize(context_len=4096), 256 + 1),
        (KvSize(context_len=4097), 257 + 1),
        (KvSize(memory_mb=1), 8),
        (KvSize(memory_fraction=0.5), 4096),
        (KvSize(memory_fraction=1.0), 8192),
    ],
)
def test_a_stated_size_is_what_one_gets(size, blocks):
    assert cache_blocks(size, SHAPE, GIB) == blocks


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (KvSize(context_len=64, memory_mb=64), r"2 sizes \(context_len, memory_mb\); give one"),
        (KvSize(context_len=0), "context_len is 0; it must be at least 1"),
        (KvSize(memory_mb=-1), "memory_mb is -1"),
        (KvSize(memory_fraction=0.0), "memory_fraction is 0.0; it must be above 0 and at most 1"),
        (KvSize(memory_fraction=1.5), "memory_fraction is 1.5"),
        (KvSize(memory_fraction=1e-6), "too little for a block of 16 tokens; the least is 0.2 MiB"),
    ],
)
def test_a_size_that_is_none_is_refused(size, words):
    with pytest.raises(LoadError, match=words) as caught:
        cache_blocks(size, SHAPE, GIB)
    assert caught.value.failure.reason is FailureReason.BAD_CONFIGURATION


@pytest.mark.parametrize("size", [KvSize(context_len=200_000), KvSize(memory_mb=1025)])
def test_more_than_is_free_is_refused(size):
    with pytest.raises(LoadError, match="MiB, 1024 MiB are free") as caught:
        cache_blocks(size, SHAPE, GIB)
    assert caught.value.failure.reason is FailureReason.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("max_seqs", "context", "tokens"),
    [(32, 256, 8 * 256), (2, 256, 2 * 256), (32, 131_072, 8191 * 16), (1, 1_000_000, 8191 * 16)],
)
def test_the_cpu_keeps_some_contexts_and_at_most_a_gibibyte(max_seqs, context, tokens):
    assert default_size(SHAPE, on_host=True, max_seqs=max_seqs, context=context) == KvSize(context_len=tokens)
    assert cache_blocks(KvSize(context_len=tokens), SHAPE, 4 * GIB) * SHAPE.block_bytes <= GIB


def test_a_device_gives_most_of_what_is_free():
    assert default_size(SHAPE, on_host=False, max_seqs=32, context=256) == KvSize(memory_fraction=0.9)


@pytest.mark.parametrize(
    ("settings", "reason", "words"),
    [
        ({"block_size": 12}, "BadConfiguration", "block_size is 12; it must be one of 8, 16, 32"),
        ({"max_seqs": 0}, "BadConfiguration", "max_seqs is 0"),
        ({"max_batched_tokens": 0}, "BadConfiguration", "max_batched_tokens is 0"),
        ({"prefix_cache_n": -1}, "BadConfiguration", "prefix_cache_n is -1"),
        ({"num_device_layers": ("0:1", "1:1")}, "BadConfiguration", "is 0:1;1:1; a model takes one device for now"),
        ({"kv_size": KvSize(memory_mb=1 << 40)}, "OutOfMemory", "give a smaller size"),
    ],
)
def test_settings_are_checked_when_loading(tiny_model, settings, reason, words):
    path = tiny_model("qwen3_tied_wide_heads").path
    with pytest.raises(LoadError, match=words) as caught:
        loading.load(EngineConfig(path, **settings), lambda *_: None)
    assert caught.value.failure.reason == reason


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tiny_model, monkeypatch):
    monkeypatch.setattr(host, "available_memory", lambda: 1 << 16)
    with pytest.raises(LoadError, match=r"the weights take 0 MiB as torch\.float32, 0 MiB are free") as caught:
        loading.load(EngineConfig(tiny_model("qwen3_tied_wide_heads").path), pytest.fail)
    assert caught.value.failure.reason is FailureReason.OUT_OF_MEMORY


def test_a_refused_allocation_names_what_it_was_for(tiny_model, monkeypatch):
    monkeypatch.setattr(host, "available_memory", lambda: 1 << 62)
    config = EngineConfig(tiny_model("qwen3_tied_wide_heads").path, kv_size=KvSize(memory_mb=1 << 34))
    with pytest.raises(LoadError, match="no memory for the KV cache: ") as caught:
        loading.load(config, lambda *_: None)
    assert caught.value.failure.reason is FailureReason.OUT_OF_MEMORY


@pytest.mark.parametrize(("context_len", "limit"), [(100, 112), (4096, 256)])
def test_a_request_is_limited_by_the_cache_and_by_the_model(tiny_model, context_len, limit):
    config = EngineConfig(tiny_model("qwen3_tied_wide_heads").path, kv_size=KvSize(context_len=context_len))
    assert loading.load(config, lambda *_: None).limits.max_request_tokens == limit


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({"proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 700 kB\n"}, 700 * 1024),
        ({"proc/meminfo": "MemAvailable: 700 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 700 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable: 700 kB\n",
                "sys/fs/cgroup/memory.max": "500000\n",
                "sys/fs/cgroup/memory.current": "300000\n",
                "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 100000\n",
            },
            300_000,
        ),
    ],
)
def test_available_memory_heeds_the_container(tmp_path, files, available):
    write(tmp_path, files)
    assert host.available_memory(tmp_path) == available


def test_available_memory_without_linux_files_is_the_machines(tmp_path):
    assert host.available_memory(tmp_path) > 1 << 28


def test_threads_are_physical_cores_within_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: set(range(8)))
    assert host.cpu_threads(tmp_path) == 8
    for cpu in range(8):
        write(
            tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"}
        )
    assert host.cpu_threads(tmp_path) == 4
    for quota, threads in (("max 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1)):
        write(tmp_path, {"sys/fs/cgroup/cpu.max": quota})
        assert host.cpu_threads(tmp_path) == threads


def test_a_cache_of_float8_takes_a_byte_an_element_and_answers_much_the_same(tiny_model):
    path = tiny_model("qwen3_untied_biased").path
    plain, narrow = (
        loading.load(EngineConfig(path, kv_size=KvSize(memory_mb=1), cache_type=name), lambda *_: None)
        for name in ("auto", "f8e4m3")
    )
    assert narrow.memory.cache.blocks // 4 == plain.memory.cache.blocks
    expected, found = (_logits(model.runner) for model in (plain, narrow))
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


def _logits(runner):
    request = Request("text", list(range(40)), 40, Sampling(max_tokens=1), block_table=[3, 2, 1])
    batch = build_batch([Chunk(request, 0, 40, samples=True)], 16, runner.device)
    with torch.inference_mode():
        return runner.decoder.logits(runner.decoder(batch.token_ids, batch.positions, runner.layers, batch.layout))
