"""The model server's settings, parsed once at the edge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DtypeName = Literal["auto", "bf16", "f16", "f32"]

DEFAULT_MAX_SEQS = 32
DEFAULT_MAX_BATCHED_TOKENS = 4096
DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class KvSize:
    """Size of the KV cache: at most one field is set; none means the device's default."""

    context_len: int | None = None
    memory_mb: int | None = None
    memory_fraction: float | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All that an engine process needs; saved by the supervisor, so a rebooted engine gets the same."""

    model_dir: Path
    dtype: DtypeName = "auto"
    max_seqs: int = DEFAULT_MAX_SEQS
    max_batched_tokens: int = DEFAULT_MAX_BATCHED_TOKENS
    block_size: int = DEFAULT_BLOCK_SIZE
    kv_size: KvSize = KvSize()
