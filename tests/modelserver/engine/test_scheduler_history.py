"""Both schedulers under random histories, against a device that remembers what each slot of the cache holds.

The device knows, for every slot, the whole text whose last token was written there. A chunk may be computed only if the
slots before it hold its own text: so a block that is shared wrongly, freed too early or named before it is computed is
seen at once, whatever led to it.
"""

import random
from collections import deque
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from multimodel_server.engine.messages import Embed, Embedded, Generate, RequestFailed, Sampling
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.request import Request, State
from multimodel_server.engine.scheduler import Limits
from multimodel_server.engine.schedulers import scheduler_for

STOP = 9
REQUESTS = 40
PROMPTS = [[random.Random(seed).randint(1, 4) for _ in range(30)] for seed in range(3)]
"""What prompts begin with: many have much in common."""


@dataclass
class Device:
    """What the slots of the cache hold, and the tokens that were sampled."""

    block_size: int
    random: random.Random
    slots: dict[tuple[int, int], object] = field(default_factory=dict)
    texts: dict[Request, list[int]] = field(default_factory=dict)
    known: dict[object, int] = field(default_factory=dict)

    def text(self, request, length):
        """Return one number for the text of a request's first tokens, and for that text alone."""
        number = self.known.setdefault(("salt", request.cache_salt), len(self.known))
        for token in self.texts[request][:length]:
            number = self.known.setdefault((number, token), len(self.known))
        return number

    def slot(self, table, position):
        return table[position // self.block_size], position % self.block_size

    def compute(self, chunk, table, broken):
        """Return the outcome of a chunk, or None if it has none."""
        request = chunk.request
        text = self.texts.setdefault(request, list(request.token_ids))
        sound = len(text) >= chunk.end and request.state is not State.ENDED
        if sound:
            for position in range(chunk.start):
                slot = self.slot(table, position)
                assert self.slots.get(slot) == self.text(request, position + 1), f"{request.request_id} at {position}"
        for position in range(chunk.start, chunk.end):
            written = self.text(request, position + 1) if sound and not broken else object()
            self.slots[self.slot(table, position)] = written
        if broken or not chunk.samples:
            return None
        if request.pools:
            return Outcome(embedding=[float(chunk.end)])
        token = self.random.choice([1, 2, 3, 4, 4, STOP])
        if len(text) == chunk.end:
            text.append(token)
        return Outcome(error="bad luck") if self.random.random() < 0.01 else Outcome(token)


class History:
    """One engine's life: requests come, are computed, fail and are cancelled, until all have ended."""

    def __init__(self, limits, blocks, depth, seed):
        self.random = random.Random(seed)
        self.scheduler = scheduler_for(limits, blocks)
        self.scheduler.prompt_allowance = self.random.randint(1, limits.max_batched_tokens)
        self.device = Device(limits.block_size, self.random)
        self.depth = depth
        self.in_flight = deque()
        self.live = {}
        self.said = {}
        self.digests = {}

    def run(self):
        arrivals = deque(range(REQUESTS))
        for _ in range(10_000):
            while arrivals and self.random.random() < 0.5:
                self.add(arrivals.popleft())
            if self.live and self.random.random() < 0.05:
                self.cancel(self.random.choice(sorted(self.live)))
            self.turn()
            self.check()
            if not self.live and not self.in_flight and not arrivals:
                break
        assert not self.live, "some requests never ended"
        assert not self.scheduler.has_work
        assert self.scheduler.blocks.used == 0

    def add(self, number):
        limit = self.scheduler.limits.max_request_tokens
        prompt = self.random.choice(PROMPTS)[: self.random.randint(1, 30)] + [number % 4 + 1] * self.random.randint(
            0, 4
        )
        if self.random.random() < 0.1:
            message = Embed(f"r{number}", prompt)
        else:
            sampling = Sampling(max_tokens=self.random.randint(1, 30), stop_token_ids=frozenset({STOP}))
            message = Generate(
                f"r{number}", prompt, sampling, self.random.choice([0, 0, 0, 1, -1]), self.random.choice(["", "salt"])
            )
        request = Request.of(message)
        assert (self.scheduler.refusal(request) is None) == (request.total <= limit)
        if request.total <= limit:
            self.live[request.request_id] = request
            self.said[request.request_id] = []
            self.scheduler.add(request)

    def cancel(self, name):
        self.scheduler.cancel(name)
        request = self.live.pop(name)
        assert request.state is State.ENDED
        assert request.in_flight or request.block_table == []

    def turn(self):
        chunks = self.scheduler.schedule()
        self.check_step(chunks)
        if chunks:
            self.in_flight.append([(chunk, tuple(chunk.request.block_table)) for chunk in chunks])
        if self.in_flight and (len(self.in_flight) >= self.depth or not chunks):
            self.land(self.in_flight.popleft())

    def check_step(self, chunks):
        limits = self.scheduler.limits
        assert chunks or self.in_flight or not self.live, "nothing is computed though there is work"
        tokens = sum(chunk.end - chunk.start for chunk in chunks)
        if limits.paged:
            assert tokens <= limits.max_batched_tokens
            decoding = [chunk.samples and chunk.end - chunk.start == 1 for chunk in chunks]
            assert not any(decoding[decoding.index(False) :] if False in decoding else [])
        else:
            assert len({(chunk.start, chunk.end) for chunk in chunks}) <= 1
            assert tokens <= limits.max_batched_tokens or len(chunks) == 1
            assert all(chunk.samples for chunk in chunks)
        assert len({chunk.request for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            assert chunk.start < chunk.end <= len(chunk.request.block_table) * limits.block_size

    def land(self, step):
        if self.random.random() < 0.03:  # a fault: each is computed again by itself, and some fail alone too
            for chunk, table in step:
                self.device.compute(chunk, table, broken=True)
                if chunk.request.in_flight == 1 and self.random.random() < 0.3:
                    self.hear([self.scheduler.fail(chunk.request, "broken")])
                else:
                    self.land_chunks([(chunk, table)])
        else:
            self.land_chunks(step)

    def land_chunks(self, step):
        computed = [self.device.compute(chunk, table, broken=False) for chunk, table in step]
        outcomes = [outcome for outcome in computed if outcome is not None]
        self.hear(self.scheduler.complete([chunk for chunk, _ in step], outcomes))

    def hear(self, messages):
        for message in messages:
            request = self.live.get(message.request_id)
            if isinstance(message, RequestFailed):
                self.live.pop(message.request_id, None)
                continue
            assert request is not None, "a request that ended is told of"
            if isinstance(message, Embedded):
                assert message.vector == [float(request.prompt_length)]
                del self.live[message.request_id]
                continue
            said = self.said[message.request_id]
            assert message.cached_tokens == (0 if said else request.cached_tokens)
            said += message.token_ids
            assert len(said) <= request.sampling.max_tokens
            if message.finish_reason:
                text = self.device.texts[request][request.prompt_length :]
                assert said == text[: len(said)]
                assert (message.finish_reason == "stop") == (text[len(said) : len(said) + 1] == [STOP])
                del self.live[message.request_id]

    def check(self):
        scheduler = self.scheduler
        assert scheduler.problems() == []
        assert len(scheduler.running) <= scheduler.limits.max_seqs
        assert {*scheduler.running, *scheduler.waiting} == set(self.live.values())
        assert all(request.in_flight or not request.block_table for request in scheduler.waiting)
        for priority in (-1, 0, 1):
            running = [request.arrival for request in scheduler.running if request.priority == priority]
            waiting = [request.arrival for request in scheduler.waiting if request.priority == priority]
            assert not running or not waiting or max(running) < min(waiting), "someone overtook their equals"
        self.check_digests()

    def check_digests(self):
        """A digest stands for one text, for ever, and that text is in its block."""
        for digest, block in self.scheduler.blocks._block_of.items():
            text = self.device.slots[block, self.scheduler.limits.block_size - 1]
            assert self.digests.setdefault(digest, text) == text
        assert len(set(self.digests.values())) == len(self.digests)


LIMITS = {
    "max_seqs": st.integers(1, 6),
    "max_batched_tokens": st.integers(1, 40),
    "block_size": st.sampled_from([1, 2, 4]),
    "blocks": st.integers(2, 40),
    "prefix_cache_n": st.sampled_from([0, 1, 3, 16]),
    "seed": st.integers(0, 2**32),
}


def live_through(*, depth, max_seqs, max_batched_tokens, block_size, blocks, prefix_cache_n, seed, **policy):
    limits = Limits(
        max_seqs, max_batched_tokens, blocks * block_size, block_size, 10, prefix_cache_n=prefix_cache_n, **policy
    )
    history = History(limits, blocks, depth, seed)
    history.run()
    return history


@pytest.mark.parametrize("depth", [1, 2, 3], ids=["step_by_step", "one_ahead", "two_ahead"])
@pytest.mark.parametrize("policy", [{}, {"paged": False}, {"kv_cache": False}], ids=["paged", "default", "no_kv_cache"])
@settings(max_examples=40, deadline=None)
@given(**LIMITS)
def test_every_request_ends_and_reads_only_its_own_text(policy, depth, **limits):
    live_through(depth=depth, **policy, **limits)


def test_such_histories_share_preempt_and_evict():
    histories = [
        live_through(depth=1, max_seqs=5, max_batched_tokens=30, block_size=2, blocks=30, prefix_cache_n=1, seed=seed)
        for seed in range(5)
    ]
    assert sum(history.scheduler.preemptions for history in histories) > 10
    assert sum(history.scheduler.blocks.evictions for history in histories) > 50
    assert sum(history.scheduler.prefixes.hits for history in histories) > 500
