"""What a loaded model takes of its device: given back while it sleeps, taken again when it wakes."""

import logging
import time
from collections.abc import Callable

import torch

from multimodel_server.engine import host
from multimodel_server.engine.arena import Arena
from multimodel_server.engine.capacity import MIB
from multimodel_server.engine.kv_cache import KvCache

ReadWeights = Callable[[Callable[[int, int], None]], None]
"""Reads the weights from their files into the arena, reporting the bytes read so far and the bytes there are."""

HOST_SHARE = 0.8
"""The most of the host's free memory that kept weights take."""

log = logging.getLogger(__name__)


class ModelMemory:
    """Weights and cache of a model; both stay at their addresses, so whatever uses them need not know of sleep."""

    def __init__(self, arena: Arena, cache: KvCache, device: torch.device, read_weights: ReadWeights) -> None:
        self.arena = arena
        self.cache = cache
        self._device = device
        self._read_weights = read_weights
        self._blocks = 0

    @torch.inference_mode()
    def sleep(self, *, keep_weights: bool) -> None:
        """Give the device's memory back; what the cache held is lost.

        Weights of another device are kept on the host if they are to be and there is room; else they are read again.
        """
        began = time.monotonic()
        if not keep_weights:
            self.arena.forget()
        elif self._device.type != "cpu" and self._host_has_room():
            self.arena.keep()
        self.arena.sleep()
        self._blocks = self.cache.drop()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        kept = "kept on the host" if self.arena.is_kept else "to be read from their files again"
        log.info("Asleep after %.3fs; weights of %d MiB are %s", time.monotonic() - began, self.arena.size // MIB, kept)

    @torch.inference_mode()
    def wake(self, progressed: Callable[[], None]) -> None:
        """Take the memory again, with the weights in it and an empty cache as large as before; tell of progress.

        Raises:
            MemoryError: the device has too little now.
            LoadError: the weights' files are not what they were.
        """
        began = time.monotonic()
        if not self.arena.wake():
            self._read_weights(lambda *_: progressed())
        self.cache.grow(self._blocks)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        log.info("Awake after %.3fs", time.monotonic() - began)

    def _host_has_room(self) -> bool:
        return self.arena.is_kept or self.arena.size < HOST_SHARE * host.available_memory()
