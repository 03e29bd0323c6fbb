"""A region of the host's own memory: the kernel backs pages when they are touched, and takes them when advised to."""

import mmap
from pathlib import Path

import torch

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
"""Large pages spare the processor many look-ups of addresses; only aligned memory has them."""
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
"""Is missing where the kernel knows none."""


class HostRegion:
    """Addresses of the host; see `memory.Region`."""

    def __init__(self, size: int) -> None:
        """Reserve `size` bytes; raises MemoryError if that is more than the kernel grants."""
        try:
            self._pages = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"the host has no addresses for {size} bytes: {error.strerror}") from error
        if _HUGE_PAGES.exists():
            self._pages.madvise(mmap.MADV_HUGEPAGE)
        everything = torch.frombuffer(self._pages, dtype=torch.uint8)
        start = -everything.data_ptr() % HUGE_PAGE
        self.bytes = everything[start : start + size]

    def back(self, start: int, stop: int) -> None:
        """Do nothing: the kernel puts zeroed memory behind a page as soon as it is touched."""

    def drop(self) -> None:
        """Give all memory back, and with it what it held."""
        self._pages.madvise(mmap.MADV_DONTNEED)
