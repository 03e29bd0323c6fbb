"""The model server's settings, parsed once at the edge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DtypeName = Literal["auto", "bf16", "f16", "f32"]
PagedAttentionMode = Literal["auto", "on", "off"]
CacheType = Literal["auto", "f8e4m3"]

DEFAULT_MAX_SEQS = 32
DEFAULT_MAX_BATCHED_TOKENS = 4096
DEFAULT_BLOCK_SIZE = 16
DEFAULT_PREFIX_CACHE_N = 16
DEFAULT_DRAIN_SECONDS = 30.0
DEFAULT_HEARTBEAT_SECONDS = 30.0

MAX_BODY_BYTES = 50 * 1024 * 1024
"""Largest request body that is read."""


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
    cache_type: CacheType = "auto"
    paged_attention: PagedAttentionMode = "auto"
    prefix_cache_n: int = DEFAULT_PREFIX_CACHE_N
    no_kv_cache: bool = False
    num_device_layers: tuple[str, ...] = ()
    """Each as DEVICE:LAYERS; none means the one device there is."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The command line of a model server, checked."""

    model: str
    alias: str | None = None
    revision: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: DtypeName = "auto"
    max_seqs: int = DEFAULT_MAX_SEQS
    max_batched_tokens: int = DEFAULT_MAX_BATCHED_TOKENS
    block_size: int = DEFAULT_BLOCK_SIZE
    kv_size: KvSize = KvSize()
    cache_type: CacheType = "auto"
    paged_attention: PagedAttentionMode = "auto"
    prefix_cache_n: int = DEFAULT_PREFIX_CACHE_N
    no_kv_cache: bool = False
    num_device_layers: tuple[str, ...] = ()
    """Each as DEVICE:LAYERS; none means the one device there is."""
    chat_template: str | None = None
    jinja_explicit: Path | None = None
    isq: str | None = None
    cache_dir: Path | None = None
    offline: bool = False
    failure_file: Path | None = None
    drain_seconds: float = DEFAULT_DRAIN_SECONDS
    heartbeat_seconds: float = DEFAULT_HEARTBEAT_SECONDS
    log_level: str = "info"

    @property
    def api_id(self) -> str:
        """The id that replies name: the alias, else the canonical id."""
        return self.alias or self.model

    def engine(self, model_dir: Path) -> EngineConfig:
        """Return the settings of the engine process for the model's folder."""
        return EngineConfig(
            model_dir=model_dir,
            dtype=self.dtype,
            max_seqs=self.max_seqs,
            max_batched_tokens=self.max_batched_tokens,
            block_size=self.block_size,
            kv_size=self.kv_size,
            cache_type=self.cache_type,
            paged_attention=self.paged_attention,
            prefix_cache_n=self.prefix_cache_n,
            no_kv_cache=self.no_kv_cache,
            num_device_layers=self.num_device_layers,
        )
