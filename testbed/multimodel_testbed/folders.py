"""Where things that outlive a run are kept: outside the checkout, so that a fresh clone builds nothing twice."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """Return the cache folder: `MULTIMODEL_CACHE`, or `~/.cache/multimodel`."""
    chosen = os.environ.get("MULTIMODEL_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "multimodel"


@contextmanager
def exclusive(lock_file: Path) -> Iterator[None]:
    """Hold `lock_file` against other processes; waits for its present holder."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def exclusive_or_refused(lock_file: Path) -> Iterator[bool]:
    """Hold `lock_file` and yield True, or yield False at once where another process holds it."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
