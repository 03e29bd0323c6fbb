"""A region of a CUDA device, by the driver's virtual memory management: addresses and memory are had apart.

See https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VA.html.
"""

import weakref
from typing import Any

import torch
from cuda.bindings import driver


class CudaRegion:
    """Addresses of a CUDA device; see `memory.Region`."""

    def __init__(self, size: int, device: torch.device) -> None:
        torch.cuda.synchronize(device)  # makes the device's context, in which torch works, this thread's
        self._size = size
        self._device = device
        self._granule = granule(device)
        self._reservation = _Reservation(_whole(size, self._granule))
        self._bytes: torch.Tensor | None = None

    @property
    def bytes(self) -> torch.Tensor:
        """The range, [size] uint8, once there is memory behind its beginning; only what is backed may be touched."""
        if self._bytes is None:  # torch asks the driver whose address it is, which is known when memory is behind it
            self._bytes = torch.as_tensor(self._reservation, device=self._device)[: self._size]
        return self._bytes

    def back(self, start: int, stop: int) -> None:
        """Put zeroed memory behind the bytes from `start` to `stop`, both whole granules or the range's ends.

        Raises:
            MemoryError: the device has no more.
        """
        size = _whole(stop, self._granule) - start
        address = self._reservation.address + start
        memory = _checked(driver.cuMemCreate(size, _properties(self._device), 0))
        try:
            _checked(driver.cuMemMap(address, size, 0, memory, 0))
        finally:
            _checked(driver.cuMemRelease(memory))  # It stays for as long as it is mapped.
        self._reservation.mapped.append((address, size))
        access = driver.CUmemAccessDesc()
        access.location = _location(self._device)
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        _checked(driver.cuMemSetAccess(address, size, [access], 1))
        self.bytes[start : start + size].zero_()

    def drop(self) -> None:
        """Give all memory back, and with it what it held."""
        torch.cuda.synchronize(self._device)
        _unmap(self._reservation.mapped)


class _Reservation:
    """Addresses, and what is mapped there; given back when no tensor refers to them any more."""

    def __init__(self, size: int) -> None:
        self.address = int(_checked(driver.cuMemAddressReserve(size, 0, 0, 0)))
        self.mapped: list[tuple[int, int]] = []
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
        }
        weakref.finalize(self, _give_back, self.address, size, self.mapped).atexit = False


def granule(device: torch.device) -> int:
    """Return the bytes of memory that come at once, and at multiples of which they begin."""
    recommended = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
    return int(_checked(driver.cuMemGetAllocationGranularity(_properties(device), recommended)))


def _properties(device: torch.device) -> driver.CUmemAllocationProp:
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location = _location(device)
    return properties


def _location(device: torch.device) -> driver.CUmemLocation:
    location = driver.CUmemLocation()
    location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    location.id = torch.cuda.current_device() if device.index is None else device.index
    return location


def _give_back(address: int, size: int, mapped: list[tuple[int, int]]) -> None:
    torch.cuda.synchronize()
    _unmap(mapped)
    _checked(driver.cuMemAddressFree(address, size))


def _unmap(mapped: list[tuple[int, int]]) -> None:
    while mapped:
        _checked(driver.cuMemUnmap(*mapped.pop()))


def _checked(answer: tuple[Any, ...]) -> Any:
    """Return what a call of the driver brought."""
    status, *brought = answer
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError("the device has no more memory")
    if status != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(status)
        _, words = driver.cuGetErrorString(status)
        raise RuntimeError(f"the CUDA driver refused: {name.decode()}: {words.decode()}")
    return brought[0] if brought else None


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit
