"""Memory whose addresses stay while it comes and goes: what an engine gives back while it sleeps."""

from typing import Protocol

import torch

from multimodel_server.memory import host

__all__ = ["Region", "granule", "reserve"]


class Region(Protocol):
    """A range of addresses of a device, kept for good; memory is put behind parts of it, and taken away from all.

    What was captured with an address in it (a CUDA graph, say) stays valid.
    """

    @property
    def bytes(self) -> torch.Tensor:
        """The range, [size] uint8, once there is memory behind its beginning; only what is backed may be touched."""

    def back(self, start: int, stop: int) -> None:
        """Put zeroed memory behind the bytes from `start` to `stop`, both whole granules or the range's ends.

        Raises:
            MemoryError: the device has no more.
        """

    def drop(self) -> None:
        """Give all memory back, and with it what it held."""


def reserve(size: int, device: torch.device) -> Region:
    """Return a range of `size` bytes, with no memory behind it yet."""
    if device.type == "cuda":
        from multimodel_server.memory.cuda import CudaRegion

        return CudaRegion(size, device)
    return host.HostRegion(size)


def granule(device: torch.device) -> int:
    """Return the bytes of memory that come at once, and at multiples of which they begin."""
    if device.type == "cuda":
        from multimodel_server.memory import cuda

        return cuda.granule(device)
    return host.PAGE
