"""From a model folder to a runner that is ready to step."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from multimodel_api.failures import FailureReason
from multimodel_server import kernels
from multimodel_server.config import DtypeName, EngineConfig, KvSize
from multimodel_server.engine import host
from multimodel_server.engine.capacity import MIB, CacheShape, cache_blocks, default_size
from multimodel_server.engine.runner import Runner
from multimodel_server.engine.scheduler import Limits
from multimodel_server.errors import LoadError
from multimodel_server.models.config import DecoderConfig
from multimodel_server.models.decoder import Blueprint, Decoder
from multimodel_server.models.loader import Report, load_weights
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

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, and what a scheduler may ask of it."""

    runner: Runner
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
    shape = blueprint.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(config.dtype, shape, device)
    decoder = _empty_decoder(blueprint, device, dtype)
    load_weights(decoder, config.model_dir, report)
    cache = _allocate_cache(config, shape, device, dtype)
    loaded = _loaded(config, decoder, cache)
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
    if config.cache_type != "auto":
        raise _bad(f"cache_type is {config.cache_type}, which is not served yet; use auto")
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


def _empty_decoder(blueprint: Blueprint, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Return a decoder with room for its weights."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _out_of_memory_named("the weights"), device:
            decoder = Decoder(blueprint)
            stored = DTYPES.get(blueprint.config.dtype, dtype)
            decoder.hold_matrices(kernels.held_dtype(stored, dtype, device))
    finally:
        torch.set_default_dtype(previous)
    needed = sum(parameter.nbytes for parameter in decoder.parameters())
    # The CPU's memory is only taken when written to: a process that takes too much is killed, not told.
    if device.type == "cpu" and needed > host.available_memory():
        needed_mib, free_mib = needed // MIB, host.available_memory() // MIB
        message = (
            f"the weights take {needed_mib} MiB as {dtype}, {free_mib} MiB are free; use dtype bf16 or more memory"
        )
        raise LoadError(FailureReason.OUT_OF_MEMORY, message)
    return decoder


def _allocate_cache(
    config: EngineConfig, shape: DecoderConfig, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return the zeroed cache, [layers, 2, blocks, block_size, kv_heads, head_dim]."""
    block = CacheShape(shape.num_layers, shape.num_kv_heads, shape.head_dim, config.block_size, dtype.itemsize)
    on_host = device.type == "cpu"
    free = host.available_memory() if on_host else torch.cuda.mem_get_info(device)[0]
    size = config.kv_size
    if size == KvSize():
        size = default_size(block, on_host=on_host, max_seqs=config.max_seqs, context=shape.max_position_embeddings)
    blocks = cache_blocks(size, block, free)
    with _out_of_memory_named("the KV cache"):
        return torch.zeros(
            (shape.num_layers, 2, blocks, config.block_size, shape.num_kv_heads, shape.head_dim),
            dtype=dtype,
            device=device,
        )


def _loaded(config: EngineConfig, decoder: Decoder, cache: torch.Tensor) -> LoadedModel:
    blocks = cache.shape[2] - 1
    limits = Limits(
        max_seqs=config.max_seqs,
        max_batched_tokens=config.max_batched_tokens,
        max_request_tokens=min(decoder.config.max_position_embeddings, blocks * config.block_size),
        block_size=config.block_size,
        vocab_size=decoder.config.vocab_size,
        paged=config.paged_attention != "off",
        prefix_cache_n=config.prefix_cache_n,
        kv_cache=not config.no_kv_cache,
    )
    decoder.limit_context(limits.max_request_tokens)
    return LoadedModel(Runner(decoder, cache), config.model_dir / "tokenizer.json", limits, blocks)


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
