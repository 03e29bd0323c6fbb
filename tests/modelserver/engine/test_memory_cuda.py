"""Memory of a CUDA device, as the driver is asked for it: NVIDIA's bindings over a driver that checks all it hears."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("cuda_driver.c")
SETTING = """
    import ctypes, gc
    import pytest, torch
    from multimodel_server.engine.capacity import CacheShape
    from multimodel_server.engine.kv_cache import KvCache
    from multimodel_server.memory import cuda

    MIB = 1 << 20
    driver = ctypes.CDLL("libcuda.so.1")

    def state():
        gc.collect()
        counts = (ctypes.c_size_t * 3)()
        driver.test_state(counts)
        return counts[0] // MIB, counts[1] // MIB, counts[2]

    def tensor_at(holder, device):
        interface = holder.__cuda_array_interface__
        memory = (ctypes.c_uint8 * interface["shape"][0]).from_address(interface["data"][0])
        memory.holder = holder
        return torch.frombuffer(memory, dtype=torch.uint8)

    torch.cuda.synchronize, torch.cuda.current_device, torch.as_tensor = lambda *_: None, lambda: 0, tensor_at
    device = torch.device("cuda")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the driver's library, compiled against the header that Triton brings."""
    found = find_spec("triton")
    assert found is not None
    include = Path(found.origin).parent / "backends" / "nvidia" / "include"
    folder = tmp_path_factory.mktemp("driver")
    command = ["cc", "-shared", "-fPIC", f"-I{include}", "-o", folder / "libcuda.so.1", DRIVER, "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture
def run(folder):
    """Run lines in a process of their own, whose CUDA driver is ours."""

    def run(lines):
        script = textwrap.dedent(SETTING) + textwrap.dedent(lines)
        command = [sys.executable, "-c", script]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    return run


def test_a_region_takes_memory_by_granules_and_gives_all_of_it_back(run):
    run("""
        region = cuda.CudaRegion(10 * MIB + 5, device)
        assert (cuda.granule(device), state()) == (2 * MIB, (12, 0, 0))
        region.back(0, 2 * MIB)
        region.back(4 * MIB, 10 * MIB + 5)
        assert state() == (12, 10, 0)
        assert region.bytes.shape == (10 * MIB + 5,)
        address = region.bytes.data_ptr()
        region.bytes[: 2 * MIB].fill_(3)
        region.drop()
        assert state() == (12, 0, 0)
        region.back(0, 2 * MIB)
        assert region.bytes.data_ptr() == address and not region.bytes[: 2 * MIB].any()

        too_large = cuda.CudaRegion(100 * MIB, device)
        with pytest.raises(MemoryError, match="the device has no more memory"):
            too_large.back(0, 100 * MIB)
        del too_large
        assert state() == (12, 2, 0)
        with pytest.raises(RuntimeError, match="refused: CUDA_ERROR_INVALID_VALUE: invalid argument"):
            cuda.CudaRegion(0, device)

        view = region.bytes[5:9]
        del region
        assert state() == (12, 2, 0), "the last view keeps the addresses and what is behind them"
        del view
        assert state() == (0, 0, 0)
    """)


def test_a_cache_of_many_addresses_and_little_memory_grows_in_place(run):
    run("""
        shape = CacheShape(layers=3, kv_heads=2, head_dim=8, block_size=16, element_size=2)
        cache = KvCache(shape, torch.bfloat16, device, most=10_000_000, blocks=2)
        assert state()[1] == 12
        cache.tensor[:, :, :2] = 4
        cache.grow(6000)
        assert state()[1] == 24 == cache.bytes // MIB
        assert (cache.tensor[:, :, :2] == 4).all() and not cache.tensor[:, :, 2:6000].any()
        assert cache.drop() == 6000 and state()[1] == 0
        cache.grow(6000)
        assert not cache.tensor[:, :, :6000].any()
    """)
