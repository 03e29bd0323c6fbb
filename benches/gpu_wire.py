"""An engine in this process, asked for one load after another: the loop that serves, without a pipe to a process."""

import random
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

from gpu_profile import Profile, Profiler

from multimodel_server.engine.loading import LoadedModel
from multimodel_server.engine.loop import Engine
from multimodel_server.engine.messages import (
    Generate,
    RequestFailed,
    Sampling,
    Step,
    Stop,
    decode_from_engine,
    encode,
)

FIRST_TOKEN_ID = 300


@dataclass(frozen=True)
class Load:
    """Prompts that come at once, each to be continued by so many tokens."""

    prompts: Sequence[Sequence[int]]
    new_tokens: int
    profiled: range = range(0)
    """Steps, by their numbers, that a profiler watches."""


@dataclass(frozen=True)
class Seen:
    """When each step was told, and how many requests gained by it; times in seconds after the load was given."""

    times: list[float]
    gained: list[int]
    profile: Profile | None


Plan = Generator[Load, Seen, None]
"""Yields what to do next, and is sent what was seen."""


def follow(model: LoadedModel, plan: Plan, device: str) -> None:
    """Have an engine do what a plan says; raises RuntimeError where a request fails."""
    Engine(model, cast("Connection", _Wire(plan, device))).run()


class _Wire:
    """The engine's end of a pipe whose other end is a plan: whenever the engine has nothing to do, it is told more."""

    def __init__(self, plan: Plan, device: str) -> None:
        self._plan, self._device = plan, device
        self._inbox: deque[bytes] = deque()
        self._load: Load | None = None
        self._unfinished = 0
        self._began = 0.0
        self._seen: list[tuple[float, int]] = []
        self._profiler: Profiler | None = None

    def poll(self, patience: float = 0.0) -> bool:
        """Tell whether there is a message; an engine that has done all it was asked, and would wait, gets the next."""
        if patience > 0 and not self._inbox and not self._unfinished:
            self._next()
        return bool(self._inbox)

    def recv_bytes(self) -> bytes:
        """Return the next message."""
        return self._inbox.popleft()

    def send_bytes(self, frame: bytes) -> None:
        """Note what the engine says."""
        now = time.perf_counter()
        message = decode_from_engine(frame)
        if isinstance(message, RequestFailed):
            raise RuntimeError(message.message)  # noqa: TRY004  (the request failed; its type is right)
        if isinstance(message, Step) and message.tokens:
            self._seen.append((now - self._began, len(message.tokens)))
            self._unfinished -= sum(tokens.finish_reason is not None for tokens in message.tokens)
            self._watch()

    def _next(self) -> None:
        try:
            load = next(self._plan) if self._load is None else self._plan.send(self._result(self._load))
        except StopIteration:
            self._inbox.append(encode(Stop()))
            return
        self._load, self._seen, self._profiler = load, [], None
        self._unfinished = len(load.prompts)
        sampling = Sampling(max_tokens=load.new_tokens)
        for number, prompt in enumerate(load.prompts):
            self._inbox.append(encode(Generate(str(number), list(prompt), sampling)))
        self._watch()
        self._began = time.perf_counter()

    def _watch(self) -> None:
        """Start or stop the profiler, if it is time."""
        if self._load is None or not self._load.profiled:
            return
        if len(self._seen) == self._load.profiled.start:
            self._profiler = Profiler(self._device)
            self._profiler.start()
        elif len(self._seen) == self._load.profiled.stop and self._profiler is not None:
            self._profiler.stop()

    def _result(self, load: Load) -> Seen:
        watched = None if self._profiler is None else self._profiler.result(len(load.profiled))
        return Seen([time for time, _ in self._seen], [gained for _, gained in self._seen], watched)


def random_prompts(rng: random.Random, count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Return prompts of which no two begin alike."""
    return [[rng.randrange(FIRST_TOKEN_ID, vocabulary) for _ in range(length)] for _ in range(count)]
