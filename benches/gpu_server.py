"""The model server as users run it: its pace over HTTP, how soon it is ready, and how soon it wakes."""

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import httpx
import psutil
from gpu_client import Round, ask_at_once
from gpu_measures import TO_DEVICE, Bar, Measure, Setting, Tell
from gpu_wire import random_prompts
from shapes import SHAPES, model_folder

from multimodel_api.names import PROGRESS_PATH, READY_PATH
from multimodel_api.progress import LoadPhase, LoadProgress

ROOT = Path(__file__).parent.parent
START_SECONDS = 120.0
POLL_SECONDS = 0.02
LOG_LINES = 8
LLAMA = "llama-3.2-1b"
REAL = ("-m", "multimodel_server")
STAND_IN = (str(Path(__file__).parent / "gpu_standin.py"),)
"""The same server around an engine that computes nothing."""


@dataclass(frozen=True)
class Server:
    """A model server that is ready."""

    port: int
    process: psutil.Process
    ready_seconds: float
    """From the start of the process on."""
    listening_seconds: float

    def get(self, path: str) -> httpx.Response:
        """Return what the server says at a path."""
        return _call("GET", self.port, path)

    def post(self, path: str) -> None:
        """Have the server do something; raises httpx.HTTPStatusError where it refuses."""
        _call("POST", self.port, path).raise_for_status()

    def cpu_seconds(self) -> list[float]:
        """Return the processor time that the HTTP process and the busiest of its children have taken."""
        children = [_cpu_seconds(child) for child in self.process.children(recursive=True)]
        return [_cpu_seconds(self.process), max(children, default=0.0)]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _call(method: str, port: int, path: str) -> httpx.Response:
    return _client().request(method, f"http://127.0.0.1:{port}{path}")


@cache
def _client() -> httpx.Client:
    """Return the only client there is: each would first read certificates, for some hundredths of a second."""
    return httpx.Client(trust_env=False, timeout=60.0)


@contextmanager
def serving(setting: Setting, shape: str, max_seqs: int, program: Sequence[str] = REAL) -> Iterator[Server]:
    """Run a model server with a shape's model; raises RuntimeError, with the end of its log, if it is never ready."""
    folder = model_folder(setting.shape(shape))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *program, f"--model={folder}", f"--port={port}"]
    command += [f"--max-seqs={max_seqs}", "--drain-seconds=1"]
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, env=os.environ | _quiet())
        try:
            listening = _wait_until_ready(process, port, log, began)
            yield Server(port, psutil.Process(process.pid), time.perf_counter() - began, listening)
        finally:
            process.terminate()
            process.wait()


def _quiet() -> dict[str, str]:
    return {"TOKENIZERS_PARALLELISM": "false"}


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: IO[str], began: float) -> float:
    """Return after how many seconds the server listened, once it is ready."""
    listening = 0.0
    while time.perf_counter() - began < START_SECONDS and process.poll() is None:
        try:
            answer = _call("GET", port, READY_PATH)
        except httpx.TransportError:
            time.sleep(POLL_SECONDS)
            continue
        listening = listening or time.perf_counter() - began
        if answer.is_success:
            return listening
        time.sleep(POLL_SECONDS)
    log.seek(0)
    said = "".join(log.readlines()[-LOG_LINES:])
    raise RuntimeError(f"the model server was not ready within {START_SECONDS:.0f} s:\n{said}")


@dataclass(frozen=True)
class Asked:
    """Requests that come at once."""

    streams: int
    prompt_tokens: int
    new_tokens: int


def asked_of_llama(setting: Setting) -> Asked:
    """Return what is asked of Llama-3.2-1B, over HTTP and of its peer."""
    return Asked(4, 16, 8) if setting.tiny else Asked(32, 32, 128)


def over_http(shape: str, asked: Asked) -> str:
    """Return the name of the measure."""
    return f"over HTTP, {shape}, {asked.streams} x {asked.prompt_tokens} in, {asked.new_tokens} out"


def http_llama(setting: Setting, tell: Tell) -> None:
    """Llama-3.2-1B: 32 at once."""
    asked = asked_of_llama(setting)
    tell(_over_http(setting, LLAMA, asked).measure(over_http(LLAMA, asked), Bar("≥", 10_000)))


def http_small(setting: Setting, tell: Tell) -> None:
    """Qwen3-0.6B: 256 at once, 512 tokens in and 256 out."""
    name, asked = "qwen3-0.6b", Asked(4, 16, 8) if setting.tiny else Asked(256, 512, 256)
    alone = _over_http(setting, name, asked, STAND_IN)
    tell(alone.measure(f"{over_http(name, asked)}, an engine that computes nothing"))
    tell(_over_http(setting, name, asked).measure(over_http(name, asked), Bar("≥", 20_000)))


@dataclass(frozen=True)
class Answered:
    """Some rounds, and how busy the host was meanwhile."""

    rounds: list[Round]
    busy: list[float]
    """Parts of a core that the HTTP process and the engine process took."""

    def measure(self, name: str, bar: Bar | None = None) -> Measure:
        """Return the rate."""
        first = sorted(second for one in self.rounds for second in one.first)
        http, engine = self.busy
        rate = statistics.median(one.tokens_per_second for one in self.rounds)
        notes = (
            f"first token p50 {first[len(first) // 2] * 1e3:.0f} ms, last {first[-1] * 1e3:.0f} ms",
            f"host idle: HTTP process {1 - http:.0%}, engine process {1 - engine:.0%}",
            f"HTTP process {http / rate * 1e6:.0f} µs a token",
        )
        return Measure(name, rate, "tok/s", bar, notes)


def _over_http(setting: Setting, shape: str, asked: Asked, program: Sequence[str] = REAL) -> Answered:
    """Return some rounds of requests; a first one is not counted."""
    rounds = 1 if setting.quick else 3
    with serving(setting, shape, asked.streams, program) as server:
        ask_at_once(server.port, prompts_of(setting, shape, asked, 0), asked.new_tokens)
        before, began = server.cpu_seconds(), time.perf_counter()
        answered = [
            ask_at_once(server.port, prompts_of(setting, shape, asked, number), asked.new_tokens)
            for number in range(1, rounds + 1)
        ]
        wall = time.perf_counter() - began
        spent = [after - earlier for after, earlier in zip(server.cpu_seconds(), before, strict=True)]
    return Answered(answered, [seconds / wall for seconds in spent])


def prompts_of(setting: Setting, shape: str, asked: Asked, number: int) -> list[list[int]]:
    """Return the prompts of one round: the same ones for every peer."""
    vocabulary = SHAPES[setting.shape(shape)][1].vocab_size
    return random_prompts(random.Random(number), asked.streams, asked.prompt_tokens, vocabulary)


def start(setting: Setting, tell: Tell) -> None:
    """Qwen3-0.6B: from the start of the process until it is ready; the second start finds compiled kernels."""
    name = "qwen3-0.6b"
    for which in ("first", "second"):
        with serving(setting, name, 32) as server:
            progress = LoadProgress.model_validate_json(server.get(PROGRESS_PATH).content)
        reading = progress.seconds.get(LoadPhase.READING_WEIGHTS, 0.0)
        phases = [f"{phase} {seconds:.2f} s" for phase, seconds in progress.seconds.items() if seconds]
        notes = (
            f"listening after {server.listening_seconds:.2f} s",
            f"ready after {server.ready_seconds:.2f} s",
            *phases,
        )
        bar = Bar("≤", 10.0) if which == "second" else None
        beyond = server.ready_seconds - reading
        tell(Measure(f"start, {name}, {which}, beyond reading", beyond, "s", bar, notes))


def wake(setting: Setting, tell: Tell) -> None:
    """Qwen3-8B: asleep, then awake, then the first token."""
    name, asked = "qwen3-8b", Asked(1, 32, 1)
    folder = model_folder(setting.shape(name))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with serving(setting, name, 8) as server:
        took = []
        for number in range(3):
            ask_at_once(server.port, prompts_of(setting, name, asked, number), 1)
            server.post("/sleep")
            began = time.perf_counter()
            server.post("/wake_up")
            awake = time.perf_counter() - began
            ask_at_once(server.port, prompts_of(setting, name, asked, 10 + number), 1)
            took.append((awake, time.perf_counter() - began))
    awake, first = min(took)
    rate = size / awake / 1e9
    notes = (f"{rate:.1f} GB/s", f"awake in {awake:.3f} s, {size / 1e9:.1f} GB of weights", "best of three")
    tell(
        Measure(f"wake, {name}, of the host-to-device rate", rate / setting.floor(TO_DEVICE), "%", Bar("≥", 0.7), notes)
    )
    tell(Measure(f"wake, {name}, to the first token", first, "s", Bar("≤", 0.6)))
