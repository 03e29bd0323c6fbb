"""The upstream and the clients of the router benchmark: a Go program (load/), built, started and asked to measure."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx

SOURCE = Path(__file__).parent / "load"
CACHE = Path.home() / ".cache" / "multimodel"
BINARY = CACHE / "bin" / "load"
CORE = 1
"""The core of the upstream and the clients; the router under test has core 0 for itself."""

MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: `streams` at once, each with `chunks` chunks `interval` seconds apart, then another."""

    streams: int
    chunks: int
    interval: float = 0.0
    window: int = 0
    """Chunks of a stream that may be on their way at once; 0: any number."""

    ramp: float = 1.0
    measure: float = 2.0

    @property
    def offered(self) -> float:
        """Chunks per second that the upstream means to write."""
        return self.streams / self.interval


@dataclass(frozen=True, slots=True)
class Seen:
    """What the clients saw in the measured time; times in microseconds unless the name says otherwise."""

    ttft_p50: float
    ttft_p99: float
    ttfts: int
    lag_p50: float
    lag_p99: float
    chunks: int
    all_chunks: int
    answers: int
    most_open: int
    errors: int
    first_error: str
    load_share: float
    close_ms: float
    left_behind: int
    measured_seconds: float

    @property
    def chunks_per_second(self) -> float:
        """Chunks that came."""
        return self.chunks / self.measured_seconds


def build() -> None:
    """Build the program; raises SystemExit without a Go compiler."""
    go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
    if go is None:
        raise SystemExit("no `go` on PATH or in /usr/local/go/bin; install Go 1.22 or newer")
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([go, "build", "-trimpath", "-o", BINARY, "."], cwd=SOURCE, check=True)


def command(control_port: int) -> list[str]:
    """Return the command line of upstream and clients; a model server's arguments may follow."""
    return ["taskset", "-c", str(CORE), str(BINARY), f"--control-port={control_port}"]


def measure(control_port: int, target: str, cell: Cell) -> Seen:
    """Run one measurement through the router at `target` (host:port)."""
    wanted = {
        "target": target,
        "streams": cell.streams,
        "chunks": cell.chunks,
        "interval_us": round(cell.interval * 1e6),
        "window": cell.window,
        "ramp_ms": round(cell.ramp * 1000),
        "measure_ms": round(cell.measure * 1000),
    }
    patience = cell.ramp + cell.measure + 30
    answer = httpx.post(f"http://127.0.0.1:{control_port}/run", json=wanted, timeout=patience, trust_env=False)
    answer.raise_for_status()
    return Seen(**answer.json())
