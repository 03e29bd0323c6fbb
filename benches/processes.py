"""Servers that a benchmark starts on a free port, waits for, and ends."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parent.parent
START_SECONDS = 120.0


@contextmanager
def started(module: str, *arguments: str, is_ready: Callable[[str], bool]) -> Iterator[tuple[str, psutil.Process]]:
    """Run `python -m module` in the repository; yields its URL and its process once `is_ready(url)` is true."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, *arguments, f"--port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until(is_ready, url, module)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_until(is_ready: Callable[[str], bool], url: str, module: str) -> None:
    """Return when a server is ready; raises SystemExit when it is not within the time a load may take."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if is_ready(url):
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit(f"{module} was not ready within {START_SECONDS:.0f} s")
