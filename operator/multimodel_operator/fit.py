"""Tells before a model is loaded whether a replica fits its device: from the model's config and file sizes; pure.

A warning only: it counts weights, KV cache and a flat share for the server, and knows nothing of activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multimodel_api.manifest import EngineSettings, Model
from multimodel_api.status import Memory
from multimodel_operator.drift import quantity
from multimodel_operator.objects import Object

MIB = 1 << 20
SERVER_MIB = 1024
"""What a server takes beside weights and KV cache."""
CONTEXT = 4096
"""Tokens that are counted where the manifest states none."""

GPU = "nvidia.com/gpu"
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
"""MiB of each GPU of a node, as NVIDIA's feature discovery writes it."""

_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1}
_QUANTISED_BITS = {
    **dict(zip(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1"), (4.5, 5.0, 5.5, 6.0, 8.5, 9.0), strict=True)),
    **dict(zip(("Q2K", "Q3K", "Q4K", "Q5K", "Q6K", "Q8K"), (2.625, 3.4375, 4.5, 5.5, 6.5625, 9.125), strict=True)),
}
"""Bits of a weight, its share of the block's scales included."""


@dataclass(frozen=True)
class ModelFiles:
    """What the Hub tells of a model: its config.json and the bytes of its weights, or why it does not."""

    config: Mapping[str, Any]
    weight_bytes: int
    problem: str | None = None


@dataclass(frozen=True)
class Fit:
    """Whether a replica fits, None where that cannot be told, and the figures."""

    holds: bool | None
    message: str
    memory: Memory | None = None


LOOKING = Fit(None, "its size is being looked at")
"""What is said until all has been asked."""


def fit(model: Model, engine: EngineSettings, files: ModelFiles | None, nodes: Sequence[Object] | None) -> Fit:
    """Return whether a model fits; files and nodes are None until somebody has told of them."""
    if files is None or (nodes is None and GPU in model.resources.limits):
        return LOOKING
    if files.problem:
        return Fit(None, files.problem)
    try:
        memory = memory_of(model, engine, files)
    except KeyError as missing:
        return Fit(None, f"config.json has no {missing.args[0]}, from which the size of the KV cache follows")
    return _judged(memory, *_available(model, nodes or ()))


def memory_of(model: Model, engine: EngineSettings, files: ModelFiles) -> Memory:
    """Return what a replica needs; raises KeyError with the field of config.json that is missing."""
    config = files.config.get("text_config") or files.config
    stored = _element_bytes(files.config)
    held = _ELEMENT_BYTES.get(engine.dtype or "auto", stored)
    kv_token = _kv_bytes_of_token(config, 1 if _cache_type(engine) == "f8e4m3" else held)
    tokens, kv_bytes = _kv_cache(engine, kv_token)
    weights = _weights_bytes(files, config, model.in_situ_quant, stored, held)
    return Memory(weights_mib=round(weights / MIB), kv_cache_mib=round(kv_bytes / MIB), tokens=tokens)


def _judged(memory: Memory, available: int | None, of_what: str) -> Fit:
    needed = memory.weights_mib + memory.kv_cache_mib + SERVER_MIB
    words = (
        f"a replica needs about {needed} MiB ({memory.weights_mib} for weights, {memory.kv_cache_mib} for the KV cache "
        f"of {memory.tokens} tokens, {SERVER_MIB} for the server)"
    )
    if available is None:
        return Fit(None, f"{words}; {of_what}", memory)
    shown = memory.model_copy(update={"available_mib": available})
    if needed <= available:
        return Fit(True, f"{words}; {of_what} has {available} MiB", shown)
    return Fit(False, f"{words}, but {of_what} has {available} MiB", shown)


def _available(model: Model, nodes: Sequence[Object]) -> tuple[int | None, str]:
    """Return how many MiB there are and of what; else why that is not known."""
    limits = model.resources.limits
    if GPU in limits:
        sizes = [_gpu_mib(node) for node in nodes if _takes(node, model)]
        known = [size for size in sizes if size is not None]
        return (max(known), "the largest GPU") if known else (None, f"no node tells its {GPU_MEMORY_LABEL}")
    limit = quantity(limits["memory"]) if "memory" in limits else None
    return (int(limit / MIB), "its memory limit") if limit else (None, "it has no memory limit")


def _gpu_mib(node: Object) -> int | None:
    told = node["metadata"].get("labels", {}).get(GPU_MEMORY_LABEL, "")
    return int(told) if told.isdecimal() else None


def _takes(node: Object, model: Model) -> bool:
    labels = node["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in model.node_selector.items())


def _element_bytes(config: Mapping[str, Any]) -> int:
    inner = config.get("text_config") or {}
    stored = config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or inner.get("torch_dtype")
    return _ELEMENT_BYTES.get(str(stored), 2)


def _cache_type(engine: EngineSettings) -> str | None:
    return engine.paged_attention.cache_type if engine.paged_attention else None


def _kv_bytes_of_token(config: Mapping[str, Any], element: int) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * kv_heads * head_dim * element)


def _kv_cache(engine: EngineSettings, token: int) -> tuple[int, int]:
    """Return tokens and bytes of the KV cache: as stated, else the longest prompts that layers are placed for."""
    paged = engine.paged_attention
    if paged and paged.memory_mb:
        return paged.memory_mb * MIB // token, paged.memory_mb * MIB
    stated = paged.context_len if paged else None
    tokens = stated or (engine.max_seq_len or CONTEXT) * (engine.max_batch_size or 1)
    return tokens, tokens * token


def _weights_bytes(files: ModelFiles, config: Mapping[str, Any], isq: str | None, stored: int, held: int) -> float:
    """Return the bytes of the weights in memory; quantising leaves the embedding, and quantised files, as they are."""
    if "quantization_config" in files.config:
        return files.weight_bytes
    bits = _QUANTISED_BITS.get((isq or "").upper().replace("_K", "K"))
    if bits is None:
        return files.weight_bytes * held / stored
    embedding: float = config.get("vocab_size", 0) * config.get("hidden_size", 0) * stored
    rest = max(files.weight_bytes - embedding, 0)
    return embedding + rest * bits / (8 * stored)
