"""From a model folder to a runner that is ready to step."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from multimodel_api.failures import FailureReason
from multimodel_api.progress import LoadPhase
from multimodel_server import kernels
from multimodel_server.config import DtypeName, EngineConfig, KvSize
from multimodel_server.engine import host
from multimodel_server.engine.arena import Arena, arena_bytes
from multimodel_server.engine.capacity import MIB, CacheShape, cache_blocks, default_size
from multimodel_server.engine.device_runner import DeviceRunner
from multimodel_server.engine.kv_cache import KvCache
from multimodel_server.engine.model_memory import ModelMemory
from multimodel_server.engine.runner import Runner
from multimodel_server.engine.scheduler import Limits
from multimodel_server.errors import LoadError
from multimodel_server.models.config import DecoderConfig
from multimodel_server.models.decoder import Blueprint, Decoder
from multimodel_server.models.loader import load_weights
from multimodel_server.models.registry import read_model

BLOCK_SIZES = (8, 16, 32)
DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
"""Element types by their names in our settings and in `config.json`."""
CACHE_TYPES: dict[str, torch.dtype] = {"f8e4m3": torch.float8_e4m3fn}
"""Element types that the cache may have instead of the activations'."""
LEAST_BLOCKS = 2
"""The sink, to which all padding goes, and one more: what the cache has while graphs are captured."""

log = logging.getLogger(__name__)


Report = Callable[[LoadPhase, int, int], None]
"""Called with the phase of the load, the bytes of it that are done and those that there are."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, and what a scheduler may ask of it."""

    runner: Runner
    memory: ModelMemory
    tokenizer_path: Path
    limits: Limits
    blocks: int
    """Blocks that sequences can use: all but the sink."""


def load(config: EngineConfig, report: Report) -> LoadedModel:
    """Read a model and allocate its cache, on a CUDA device if there is one.

    Raises:
        LoadError: why the model cannot be served.
    """
    _check_settings(config)
    began = time.monotonic()
    blueprint = read_model(config.model_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(config.dtype, blueprint.config, device)
    decoder = _empty_decoder(blueprint, dtype, device)
    arena = _make_arena(decoder, dtype, device)
    read_weights = partial(load_weights, decoder, config.model_dir)
    read_weights(partial(report, LoadPhase.READING_WEIGHTS))
    decoder.limit_context(decoder.config.max_position_embeddings)
    cache, runner = _open_cache(config, decoder, dtype, device, report)
    loaded = _loaded(config, runner, ModelMemory(arena, cache, device, read_weights))
    log.info(
        "Loaded %s on %s as %s in %.1fs: %d KV blocks of %d tokens, requests of up to %d tokens",
        *(config.model_dir, device, dtype, time.monotonic() - began),
        *(loaded.blocks, config.block_size, loaded.limits.max_request_tokens),
    )
    return loaded


def _check_settings(config: EngineConfig) -> None:
    if config.block_size not in BLOCK_SIZES:
        raise _bad(f"block_size is {config.block_size}; it must be one of {', '.join(map(str, BLOCK_SIZES))}")
    for name in ("max_seqs", "max_batched_tokens"):
        if getattr(config, name) < 1:
            raise _bad(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.prefix_cache_n < 0:
        raise _bad(f"prefix_cache_n is {config.prefix_cache_n}; it must be at least 0")
    if len(config.num_device_layers) > 1:
        raise _bad(f"num_device_layers is {';'.join(config.num_device_layers)}; a model takes one device for now")


def _dtype(name: DtypeName, shape: DecoderConfig, device: torch.device) -> torch.dtype:
    """Return the element type to compute in; `auto` is the checkpoint's on a device, and float32 on the CPU.

    Most CPUs have no bf16 arithmetic: float32 is quicker there, and the same on every machine.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    if shape.dtype not in DTYPES:
        raise _bad(f"config.json: dtype is {shape.dtype}; set the model's dtype to bf16, f16 or f32")
    return DTYPES[shape.dtype]


def _empty_decoder(blueprint: Blueprint, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Return a decoder whose parameters have shapes and types, and no memory yet."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            decoder = Decoder(blueprint)
            stored = DTYPES.get(blueprint.config.dtype, dtype)
            decoder.hold_matrices(kernels.held_dtype(stored, dtype, device))
    finally:
        torch.set_default_dtype(previous)
    return decoder


def _make_arena(decoder: Decoder, dtype: torch.dtype, device: torch.device) -> Arena:
    """Give a decoder room for its weights."""
    needed = arena_bytes(decoder)
    # The CPU's memory is only taken when written to: a process that takes too much is killed, not told.
    if device.type == "cpu" and needed > host.available_memory():
        needed_mib, free_mib = needed // MIB, host.available_memory() // MIB
        message = (
            f"the weights take {needed_mib} MiB as {dtype}, {free_mib} MiB are free; use dtype bf16 or more memory"
        )
        raise LoadError(FailureReason.OUT_OF_MEMORY, message)
    with _out_of_memory_named("the weights"):
        return Arena(decoder, device)


def _open_cache(
    config: EngineConfig, decoder: Decoder, dtype: torch.dtype, device: torch.device, report: Report
) -> tuple[KvCache, Runner]:
    """Return the cache and the runner that uses it."""
    shape, size, held = decoder.config, config.kv_size, CACHE_TYPES.get(config.cache_type, dtype)
    block = CacheShape(shape.num_layers, shape.num_kv_heads, shape.head_dim, config.block_size, held.itemsize)
    on_host = device.type == "cpu"
    if size == KvSize():
        size = default_size(block, on_host=on_host, max_seqs=config.max_seqs, context=shape.max_position_embeddings)
    with _out_of_memory_named("the KV cache"):
        if on_host:
            blocks = cache_blocks(size, block, host.available_memory())
            cache = KvCache(block, held, device, most=blocks, blocks=blocks)
            return cache, Runner(decoder, cache.tensor)
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info(device)
        cache = KvCache(block, held, device, most=total // block.block_bytes, blocks=LEAST_BLOCKS)
        runner = DeviceRunner(decoder, cache.tensor, config.max_seqs, config.max_batched_tokens)
        report(LoadPhase.WARMING_UP, 0, 0)
        size_after_capture(cache, runner, size, lambda: torch.cuda.mem_get_info(device)[0])
        return cache, runner


def size_after_capture(cache: KvCache, runner: Runner, size: KvSize, free: Callable[[], int]) -> None:
    """Have graphs captured, and give the cache its size of what is free then.

    All else that steps need is taken by that time: the graphs' memory and the largest step's activations. They are
    captured with a cache of a few blocks, which then grows in place.
    """
    runner.capture()
    cache.grow(cache_blocks(size, cache.shape, free() + cache.bytes - cache.rounding))


def _loaded(config: EngineConfig, runner: Runner, memory: ModelMemory) -> LoadedModel:
    shape, blocks = runner.decoder.config, memory.cache.blocks - 1
    limits = Limits(
        max_seqs=config.max_seqs,
        max_batched_tokens=config.max_batched_tokens,
        max_request_tokens=min(shape.max_position_embeddings, blocks * config.block_size),
        block_size=config.block_size,
        vocab_size=shape.vocab_size,
        paged=config.paged_attention != "off",
        prefix_cache_n=config.prefix_cache_n,
        kv_cache=not config.no_kv_cache,
    )
    runner.decoder.limit_context(limits.max_request_tokens)
    return LoadedModel(runner, memory, config.model_dir / "tokenizer.json", limits, blocks)


@contextmanager
def _out_of_memory_named(what: str) -> Iterator[None]:
    """Turn a refused allocation into a failure that says what it was for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU, torch reports it as a plain RuntimeError.
        refused = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not refused:
            raise
        reason = str(error).strip().splitlines()[0]
        raise LoadError(FailureReason.OUT_OF_MEMORY, f"no memory for {what}: {reason}") from error


def _bad(message: str) -> LoadError:
    return LoadError(FailureReason.BAD_CONFIGURATION, message)
