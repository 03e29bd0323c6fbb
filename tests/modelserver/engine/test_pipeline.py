"""Steps launched ahead, over a device that does nothing before it is waited for: what is told is as if step by step.

The device's next token follows from the tokens that it finds in the cache, so it is wrong if anything it reads was
written by another, given back too early, or follows from a token that never was.
"""

import random
import zlib
from collections import deque
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from multimodel_server.engine.messages import Embed, Embedded, Generate, RequestFailed, Sampling
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.pipeline import FAULTS_IN_A_ROW, Pipeline
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk, Limits
from multimodel_server.engine.schedulers import scheduler_for

STOP = 9
NEVER = -1
PROMPTS = [[random.Random(seed).randint(1, 4) for _ in range(20)] for seed in range(3)]


def following(tokens):
    return (1, 2, 3, 4, 4, 2, STOP)[zlib.crc32(bytes(tokens)) % 7]


def answer(request):
    """Return the tokens that a request must get, and why they end."""
    text = request.token_ids[: request.prompt_length]
    while len(text) < request.total:
        token = following(text)
        if token == STOP:
            return text[request.prompt_length :], "stop"
        text.append(token)
    return text[request.prompt_length :], "length"


@dataclass
class Job:
    chunk: Chunk
    tokens: list[int]
    table: tuple[int, ...]


class LazyDevice:
    """A runner whose device computes what was launched when somebody waits for it, in order."""

    def __init__(self, ahead, block_size, chance=None):
        self.ahead = ahead
        self.block_size = block_size
        self.random = chance
        self.slots = {}
        self.ids = []
        self.rows = {}
        self.launched = deque()
        self.steps = self.most_in_flight = 0
        self.broken = frozenset()
        """Requests that no step can be computed with, once they have more tokens than `sound_tokens`."""
        self.sound_tokens = 8

    def launch(self, chunks):
        if self._fault(chunks):
            raise ArithmeticError("not launched")
        jobs = []
        for chunk in chunks:
            known = chunk.request.token_ids[chunk.start : chunk.end]
            if len(known) < chunk.end - chunk.start:
                known.append(~self.rows[chunk.request])
            jobs.append(Job(chunk, known, tuple(chunk.request.block_table)))
        self.rows = {chunk.request: row for row, chunk in enumerate(chunks) if chunk.samples}
        step = LazyStep(self, jobs, fails=self._fault(chunks))
        self.launched.append(step)
        self.steps += 1
        self.most_in_flight = max(self.most_in_flight, len(self.launched))
        return step

    def _fault(self, chunks):
        if any(chunk.request.request_id in self.broken and chunk.end > self.sound_tokens for chunk in chunks):
            return True
        return self.random is not None and len(chunks) > 1 and self.random.random() < 0.05

    def compute_until(self, step):
        while step in self.launched:
            oldest = self.launched.popleft()
            oldest.ids = self.ids = [self._computed(job, oldest.fails) for job in oldest.jobs]

    def _computed(self, job, fails):
        for token, position in zip(job.tokens, range(job.chunk.start, job.chunk.end), strict=True):
            self.slots[self._slot(job, position)] = NEVER if fails else self.ids[~token] if token < 0 else token
        text = [self.slots.get(self._slot(job, position), NEVER) for position in range(job.chunk.end)]
        return NEVER if NEVER in text else following(text)

    def _slot(self, job, position):
        return job.table[position // self.block_size], position % self.block_size


class LazyStep:
    def __init__(self, device, jobs, *, fails):
        self.device, self.jobs, self.fails = device, jobs, fails

    def outcomes(self):
        self.device.compute_until(self)
        if self.fails:
            raise ArithmeticError("not computed")
        return [
            Outcome(embedding=[float(job.chunk.end)]) if job.chunk.request.pools else Outcome(token)
            for job, token in zip(self.jobs, self.ids, strict=True)
            if job.chunk.samples
        ]


class Engine:
    def __init__(self, limits, blocks, device):
        self.scheduler = scheduler_for(limits, blocks)
        self.device = device
        self.pipeline = Pipeline(self.scheduler, device)
        self.requests = {}
        self.said = {}
        self.ended = {}

    def add(self, message):
        request = Request.of(message)
        if self.scheduler.refusal(request) is None:
            self.requests[message.request_id] = request
            self.said[message.request_id] = []
            self.scheduler.add(request)

    def turn(self):
        chunks = self.pipeline.launch()
        for landing in self.pipeline.land(all_launched=not chunks):
            for message in landing.told:
                self.hear(message)
        assert self.scheduler.problems() == []

    def hear(self, message):
        assert message.request_id not in self.ended, "a request that ended is told of"
        if isinstance(message, RequestFailed):
            self.ended[message.request_id] = "failed"
        elif isinstance(message, Embedded):
            self.ended[message.request_id] = "embedded"
        else:
            self.said[message.request_id] += message.token_ids
            if message.finish_reason:
                self.ended[message.request_id] = message.finish_reason

    @property
    def busy(self):
        return self.scheduler.has_work or self.pipeline.busy


def messages(chance, count):
    for number in range(count):
        prompt = chance.choice(PROMPTS)[: chance.randint(1, 20)] + [number % 4 + 1] * chance.randint(0, 3)
        if chance.random() < 0.1:
            yield Embed(f"r{number}", prompt)
            continue
        sampling = Sampling(
            max_tokens=chance.randint(1, 20),
            stop_token_ids=frozenset({STOP}),
            logit_bias={1: 0.0} if chance.random() < 0.3 else {},  # chosen on the host
        )
        yield Generate(f"r{number}", prompt, sampling, priority=chance.choice([0, 0, 1, -1]))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("policy", [{}, {"paged": False}, {"kv_cache": False}], ids=["paged", "default", "no_kv_cache"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_seqs=st.integers(1, 6),
    max_batched_tokens=st.integers(2, 40),
    block_size=st.sampled_from([1, 2, 4]),
    blocks=st.integers(3, 30),
    faults=st.booleans(),
)
@example(seed=1459, max_seqs=1, max_batched_tokens=2, block_size=1, blocks=25, faults=True)
def test_answers_are_those_of_steps_one_by_one(
    policy, ahead, seed, max_seqs, max_batched_tokens, block_size, blocks, faults
):
    chance = random.Random(seed)
    limits = Limits(max_seqs, max_batched_tokens, blocks * block_size, block_size, 10, **policy)
    device = LazyDevice(ahead, block_size, chance if faults else None)
    device.broken = {f"r{chance.randrange(20)}"} if faults else set()
    engine = Engine(limits, blocks, device)
    arrivals, cancelled = deque(messages(chance, 20)), set()
    for _ in range(5000):
        while arrivals and chance.random() < 0.4:
            engine.add(arrivals.popleft())
        alive = sorted(engine.requests.keys() - engine.ended.keys() - cancelled)
        if alive and chance.random() < 0.04:
            cancelled.add(chance.choice(alive))
            engine.scheduler.cancel(max(cancelled & set(alive)))
        if not engine.busy and not arrivals:
            break
        engine.turn()
    assert not engine.busy
    assert engine.scheduler.blocks.used == 0
    assert engine.requests.keys() == engine.ended.keys() | cancelled
    for name, request in engine.requests.items():
        tokens, reason = answer(request)
        said = engine.said[name]
        assert said == tokens[: len(said)]
        if engine.ended.get(name) in {"stop", "length"}:
            assert (said, engine.ended[name]) == (tokens, reason)
        if engine.ended.get(name) == "failed":
            assert name in device.broken


def generate(name, prompt, max_tokens=12, **sampling):
    return Generate(name, prompt, Sampling(max_tokens=max_tokens, **sampling))


def engine_of(ahead, *names, **sampling):
    engine = Engine(Limits(8, 64, 64, 4, 10), 64, LazyDevice(ahead, 4))
    for index, name in enumerate(names):
        engine.add(generate(name, PROMPTS[0][: 3 + index], **sampling))
    return engine


def test_one_step_is_launched_behind_the_one_that_runs():
    engine = engine_of(1, "a", "b")
    while engine.busy:
        engine.turn()
    assert engine.device.most_in_flight == 2
    assert engine.device.steps == 12


def test_a_token_that_the_host_chooses_holds_up_nobody_else():
    engine = engine_of(1, "fast")
    engine.add(generate("slow", PROMPTS[1][:5], logit_bias={1: 0.0}))
    while "fast" not in engine.ended:
        engine.turn()
    assert engine.device.steps <= 14  # "fast" had one token in every step
    assert len(engine.said["slow"]) == 6  # and "slow" in every other one
    while engine.busy:
        engine.turn()
    assert engine.said["slow"] == answer(engine.requests["slow"])[0]


@pytest.mark.parametrize("ahead", [0, 1])
def test_fault_after_fault_is_the_engines_own(ahead):
    engine = engine_of(ahead, "a", "b", "c", "d")
    engine.device.broken, engine.device.sound_tokens = {"a", "b", "c", "d"}, 0
    with pytest.raises(ArithmeticError):
        while engine.busy:
            engine.turn()
    assert len(engine.ended) == FAULTS_IN_A_ROW - 1


def test_a_dead_connection_is_no_fault_of_a_request():
    engine = engine_of(1, "a", "b")

    def hang_up(chunks):
        raise BrokenPipeError

    engine.device.launch = hang_up
    with pytest.raises(BrokenPipeError):
        engine.turn()
    assert engine.ended == {}
