"""What this machine, or the container around this process, has to give: processor cores and memory."""

import os
from pathlib import Path

ROOT = Path("/")


def cpu_threads(root: Path = ROOT) -> int:
    """Return how many threads compute best: one per physical core that may be used, within the container's quota."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or cpu for cpu in usable}
    quota, _, period = (_text(root / "sys/fs/cgroup/cpu.max") or "max").partition(" ")
    if quota == "max":
        return len(cores)
    return max(1, min(len(cores), int(quota) // int(period)))


def available_memory(root: Path = ROOT) -> int:
    """Return the bytes that can be allocated without swapping or meeting the container's limit."""
    meminfo = _table(root / "proc/meminfo")
    if "MemAvailable:" in meminfo:
        available = meminfo["MemAvailable:"] * 1024
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _text(root / "sys/fs/cgroup/memory.max") or "max"
    if limit == "max":
        return available
    used = int(_text(root / "sys/fs/cgroup/memory.current") or 0)
    reclaimable = _table(root / "sys/fs/cgroup/memory.stat").get("inactive_file", 0)
    return min(available, max(0, int(limit) - used + reclaimable))


def _table(path: Path) -> dict[str, int]:
    """Return the first number after each line's first word."""
    lines = [line.split() for line in (_text(path) or "").splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
