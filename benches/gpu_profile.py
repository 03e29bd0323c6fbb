"""Sees where the time of some steps goes."""

import torch
from gpu_measures import Profile, average
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


class Profiler:
    """Watches what runs between `start` and `stop`: kernels on a CUDA device, else the CPU's operations."""

    def __init__(self, device: str) -> None:
        on_device = device == "cuda"
        self._kind = DeviceType.CUDA if on_device else DeviceType.CPU
        watched = ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU
        self._profile = profile(activities=[watched], acc_events=True)

    def start(self) -> None:
        """Begin to watch."""
        self._profile.start()

    def stop(self) -> None:
        """End it, once the device has done what it was given."""
        if self._kind == DeviceType.CUDA:
            torch.cuda.synchronize()
        self._profile.stop()

    def result(self, steps: int) -> Profile | None:
        """Return the average of so many steps, or None where nothing was seen."""
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in self._profile.events()
            if event.device_type == self._kind and not event.cpu_children
        )
        return average(spans, steps) if spans else None
