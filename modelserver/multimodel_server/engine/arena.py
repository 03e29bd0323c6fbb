"""All weights of a model side by side in one region of a device, which they can leave and come back to."""

import torch

from multimodel_server.memory import Region, reserve
from multimodel_server.models.decoder import Decoder

ALIGNMENT = 256
"""Weights begin at multiples of it, as those of the device's own allocator do."""
KEPT_BYTES = 32 << 20
"""Kept weights lie on the host in pieces: page-locked memory of one piece would be rounded up to a power of two."""


class Arena:
    """The memory of a decoder's parameters, which are views of it for as long as the decoder lives."""

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        """Give a decoder that was made on the meta device room for its weights; they are zero.

        Raises:
            MemoryError: the device has too little.
        """
        self.size = arena_bytes(decoder)
        self._region = reserve(self.size, device)
        self._region.back(0, self.size)
        self._device = device
        self._kept: list[torch.Tensor] = []
        _place(decoder, self._region)

    @property
    def is_kept(self) -> bool:
        """Whether the host has a copy of the weights."""
        return bool(self._kept)

    def keep(self) -> None:
        """Copy the weights to the host, from where `wake` brings them back; they never change, so once is enough."""
        if not self._kept:
            page_locked = self._device.type == "cuda"
            for piece in torch.split(self._region.bytes, KEPT_BYTES):
                self._kept.append(torch.empty(len(piece), dtype=torch.uint8, pin_memory=page_locked).copy_(piece))

    def forget(self) -> None:
        """Give up the host's copy."""
        self._kept = []

    def sleep(self) -> None:
        """Give the device's memory back."""
        self._region.drop()

    def wake(self) -> bool:
        """Take memory again, and tell whether the weights are back; if not, they must be read as at the start.

        Raises:
            MemoryError: the device has too little now.
        """
        self._region.back(0, self.size)
        for piece, kept in zip(torch.split(self._region.bytes, KEPT_BYTES), self._kept, strict=False):
            piece.copy_(kept, non_blocking=True)
        return self.is_kept


def arena_bytes(decoder: Decoder) -> int:
    """Return the size of an arena for a decoder's weights."""
    return sum(_aligned(parameter.nbytes) for parameter in decoder.parameters())


def _place(decoder: Decoder, region: Region) -> None:
    """Make all parameters views of a region, in the order in which the decoder has them."""
    start = 0
    for module in decoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            room = region.bytes[start : start + parameter.nbytes]
            weights = room.view(parameter.dtype).view(parameter.shape)
            setattr(module, name, torch.nn.Parameter(weights, requires_grad=False))
            start += _aligned(parameter.nbytes)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
