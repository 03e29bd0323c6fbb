"""Tensors from files by parallel reads: every element in its place, in host memory that the file cannot grow."""

import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
from multimodel_server.models import reader
from multimodel_server.models.checkpoint import open_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def stored(tmp_path):
    """A file of tensors of all types, sizes that fit nowhere among them, and what is in them."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"a": (7, 9), "b": (1,), "c": (0, 5), "d": (3,), "e": (40, 50), "f": (11, 13)}
    types = (torch.float16, torch.bfloat16, torch.float32)
    tensors = {
        f"{name}{number}": torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
        for number, dtype in enumerate(types)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path), tensors


@pytest.mark.parametrize("most", [4, 6, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_element_comes_to_its_place_in_the_wanted_type(stored, most, dtype, monkeypatch):
    monkeypatch.setattr(reader, "READ_BYTES", most)
    found, tensors = stored
    targets = {tensor.name: torch.full(tensor.shape, torch.nan, dtype=dtype) for tensor in found}
    counts = []
    reader.fill([(tensor, targets[tensor.name]) for tensor in found], CPU, counts.append)
    assert sum(counts) == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert torch.equal(targets[name], tensor.to(dtype)), name


@pytest.mark.parametrize("most", [4, 6, 100, 1 << 20])
def test_reads_are_bounded_and_each_of_their_pieces_is_aligned(stored, most):
    found, tensors = stored
    reads = reader.planned([(tensor, torch.empty(tensor.shape)) for tensor in found], most)
    assert all(0 < read.size <= most for read in reads)
    assert all(piece.start % piece.dtype.itemsize == 0 for read in reads for piece in read.pieces)
    assert sum(read.size for read in reads) == sum(tensor.nbytes for tensor in tensors.values())


def test_neighbours_in_a_file_are_read_at_once(tmp_path):
    save_file({name: torch.ones(100) for name in "abcde"}, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path)
    everything = [(tensor, torch.empty(100)) for tensor in found]
    assert len(reader.planned(everything, 1 << 20)) == 1
    assert len(reader.planned([pair for pair in everything if pair[0].name != "c"], 1 << 20)) == 2


def test_a_file_that_shrinks_while_it_is_read_is_named(stored):
    found, _ = stored
    path = found[0].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoadError, match=r"model\.safetensors: is corrupt or cut short \(it ends at byte") as caught:
        reader.fill([(tensor, torch.empty(tensor.shape)) for tensor in found], CPU, lambda _: None)
    assert caught.value.failure.reason is FailureReason.BAD_WEIGHTS


PEAK = """
    import re, sys
    from pathlib import Path
    import torch
    from multimodel_server.models import reader
    from multimodel_server.models.checkpoint import open_checkpoint

    def kib(name):
        return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

    reader.READ_BYTES, reader.READERS = 1 << 20, 2
    placed = [(tensor, torch.zeros(tensor.shape).fill_(1)) for tensor in open_checkpoint(Path(sys.argv[1]))]
    reader.fill(placed[:1], torch.device("cpu"), lambda _: None)  # threads, and what else is needed once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = kib("VmRSS")
    reader.fill(placed, torch.device("cpu"), lambda _: None)
    print(kib("VmHWM") - before)
"""


def test_host_memory_is_bounded_by_the_buffers(tmp_path):  # bug 28
    save_file({f"t{number}": torch.zeros(1 << 22) for number in range(4)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert grown < 8 * 1024, f"{grown} KiB for a file of 64 MiB"
