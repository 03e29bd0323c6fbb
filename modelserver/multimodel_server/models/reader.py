"""Reads tensors from files into memory that may be a device's: many reads at once, and copies while others read.

Host memory is bounded: however large the model is, `READERS` buffers of at most `READ_BYTES` are all that is taken.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from multimodel_server.models.checkpoint import StoredTensor, bad_weights, cut_short

READERS = 8
READ_BYTES = 8 << 20
"""Large enough for a disk and for a bus; a multiple of every element's size."""


class Piece(NamedTuple):
    """Elements within a read, and where they go."""

    start: int
    """In bytes from the start of the read."""
    dtype: torch.dtype
    target: torch.Tensor  # [elements], of any type


@dataclass(slots=True)
class Read:
    """Bytes of a file that are read at once."""

    path: Path
    offset: int
    size: int = 0
    pieces: list[Piece] = field(default_factory=list)

    def room(self, path: Path, offset: int, dtype: torch.dtype, most: int) -> int:
        """Return how many elements that begin there can be read along, up to `most` bytes in all."""
        follows = path == self.path and offset == self.offset + self.size and self.size % dtype.itemsize == 0
        return (most - self.size) // dtype.itemsize if follows else 0

    def add(self, dtype: torch.dtype, target: torch.Tensor) -> None:
        """Read the elements of `target` along."""
        self.pieces.append(Piece(self.size, dtype, target))
        self.size += len(target) * dtype.itemsize


def planned(placed: Iterable[tuple[StoredTensor, torch.Tensor]], most: int) -> list[Read]:
    """Return the reads, of up to `most` bytes each, that fill contiguous tensors with what is stored for them."""
    reads: list[Read] = []
    for stored, target in sorted(placed, key=lambda pair: (pair[0].path, pair[0].offset)):
        rest, offset = target.view(-1), stored.offset
        while len(rest):
            room = reads[-1].room(stored.path, offset, stored.dtype, most) if reads else 0
            if not room:
                reads.append(Read(stored.path, offset))
                room = most // stored.dtype.itemsize
            reads[-1].add(stored.dtype, rest[:room])
            rest, offset = rest[room:], offset + room * stored.dtype.itemsize
    return reads


def fill(
    placed: Iterable[tuple[StoredTensor, torch.Tensor]], device: torch.device, progressed: Callable[[int], None]
) -> None:
    """Fill contiguous tensors of a device with what is stored for them; tell the bytes of each read that is done.

    Elements are converted to the tensors' types on the device.

    Raises:
        LoadError: BadWeights, naming the file that could not be read.
    """
    reads = planned(placed, READ_BYTES)
    idle: SimpleQueue[Staging] = SimpleQueue()
    for _ in range(min(READERS, len(reads))):
        idle.put(Staging(max(read.size for read in reads), device))
    with ExitStack() as open_files, ThreadPoolExecutor(READERS, "reader") as readers:
        files = {path: open_files.enter_context(path.open("rb", buffering=0)) for path in {read.path for read in reads}}
        running = [readers.submit(_read_one, read, files[read.path].fileno(), idle) for read in reads]
        try:
            for done in as_completed(running):
                progressed(done.result())
        finally:
            readers.shutdown(cancel_futures=True)
    while not idle.empty():
        idle.get().settle()


def _read_one(read: Read, descriptor: int, idle: "SimpleQueue[Staging]") -> int:
    staging = idle.get()
    try:
        staging.settle()
        staging.read(read, descriptor)
        staging.copy_out(read.pieces)
    finally:
        idle.put(staging)
    return read.size


class Staging:
    """A buffer on the host, from which a device copies while the host does other things."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._stream = _stream_after_all_before(device) if device.type == "cuda" else None
        self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._room = self._bytes.numpy().data

    def settle(self) -> None:
        """Wait until all that was to be copied out is copied."""
        if self._stream is not None:
            self._stream.synchronize()

    def read(self, read: Read, descriptor: int) -> None:
        """Fill the buffer with a read of an open file."""
        done = 0
        while done < read.size:
            try:
                count = os.preadv(descriptor, [self._room[done : read.size]], read.offset + done)
            except OSError as error:
                raise bad_weights(read.path, f"cannot be read: {error.strerror}") from error
            if not count:
                raise cut_short(read.path, f"it ends at byte {read.offset + done}")
            done += count

    def copy_out(self, pieces: Iterable[Piece]) -> None:
        """Begin to copy pieces of what was read to where they go."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for start, dtype, target in pieces:
                stop = start + len(target) * dtype.itemsize
                # Unless it is told not to wait, torch converts the elements on the host.
                target.copy_(self._bytes[start:stop].view(dtype), non_blocking=True)


def _stream_after_all_before(device: torch.device) -> torch.cuda.Stream:
    """Return a stream of its own, whose work follows what was begun so far: the targets may just be cleared."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream
