"""The scheduler against its promises: by examples named after the bug they prevent, and under random histories."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Limits, Scheduler

STOP = 9


def make_scheduler(blocks=16, block_size=4, max_seqs=4, budget=32):
    limits = Limits(max_seqs, budget, blocks * block_size, block_size, vocab_size=10)
    return Scheduler(limits, BlockPool(blocks))


def make_request(name, prompt=5, max_tokens=4):
    return Request(name, [1] * prompt, prompt, Sampling(max_tokens=max_tokens, stop_token_ids=frozenset({STOP})))


def run_step(scheduler, token=2):
    chunks = scheduler.schedule()
    return chunks, scheduler.complete(chunks, [token] * sum(chunk.samples for chunk in chunks))


def spans(chunks):
    return [(chunk.request.request_id, chunk.start, chunk.end) for chunk in chunks]


def test_request_runs_to_its_length():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", prompt=3, max_tokens=2))
    assert spans(run_step(scheduler)[0]) == [("a", 0, 3)]
    chunks, [tokens] = run_step(scheduler)
    assert spans(chunks) == [("a", 3, 4)]
    assert (tokens.token_ids, tokens.finish_reason) == ([2], "length")
    assert not scheduler.has_work
    assert scheduler.blocks.used == 0


def test_stop_token_ends_a_request_and_is_not_emitted():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    _, [tokens] = run_step(scheduler, token=STOP)
    assert (tokens.token_ids, tokens.finish_reason) == ([], "stop")
    assert scheduler.blocks.used == 0


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (make_request("a", prompt=61, max_tokens=4), "65 tokens; at most 64 fit"),
        (make_request("a", prompt=0), "prompt is empty"),
        (make_request("a", max_tokens=0), "max_tokens is 0"),
        (Request("a", [1, 10], 2, Sampling(max_tokens=1)), "outside 0..9"),
        (Request("a", [-1, 1], 2, Sampling(max_tokens=1)), "outside 0..9"),
        (make_request("taken"), "taken is already in use"),
    ],
)
def test_what_can_never_be_served_is_refused_with_words(request_, words):  # bugs 1 and 3
    scheduler = make_scheduler()
    scheduler.add(make_request("taken"))
    assert words in scheduler.refusal(request_)


def test_capacity_excludes_the_sink_and_a_request_of_exactly_that_size_ends():  # bug 12
    scheduler = make_scheduler(blocks=4, block_size=4)
    request = make_request("a", prompt=10, max_tokens=6)
    assert scheduler.refusal(request) is None
    scheduler.add(request)
    for _ in range(6):
        run_step(scheduler)
    assert not scheduler.has_work
    with pytest.raises(ValueError, match="cannot hold a request of 17 tokens"):
        Scheduler(Limits(4, 32, 17, 4, 10), BlockPool(4))


def test_decoding_comes_first_and_chunks_share_the_budget():
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request("a", prompt=4))
    scheduler.add(make_request("b", prompt=10))
    scheduler.add(make_request("c", prompt=10))
    assert spans(run_step(scheduler)[0]) == [("a", 0, 4), ("b", 0, 4)]
    assert spans(run_step(scheduler)[0]) == [("a", 4, 5), ("b", 4, 10), ("c", 0, 1)]
    assert spans(run_step(scheduler)[0]) == [("a", 5, 6), ("b", 10, 11), ("c", 1, 7)]


def test_an_unfinished_chunk_yields_no_token():  # bug 42
    scheduler = make_scheduler(budget=4)
    scheduler.add(make_request("a", prompt=10))
    emitted = [len(run_step(scheduler)[1]) for _ in range(3)]
    assert emitted == [0, 0, 1]


def test_admission_is_in_order_of_arrival_and_bounded_by_max_seqs():
    scheduler = make_scheduler(max_seqs=2)
    for name in "abc":
        scheduler.add(make_request(name, prompt=1))
    assert [name for name, *_ in spans(run_step(scheduler)[0])] == ["a", "b"]
    assert [request.request_id for request in scheduler.waiting] == ["c"]


def test_a_large_request_is_not_overtaken_for_ever():
    scheduler = make_scheduler(blocks=4, max_seqs=4)
    scheduler.add(make_request("small", prompt=4, max_tokens=5))
    scheduler.add(make_request("large", prompt=12, max_tokens=4))
    scheduler.add(make_request("late", prompt=1, max_tokens=1))
    first_seen = []
    while scheduler.has_work:
        first_seen += [name for name, *_ in spans(run_step(scheduler)[0]) if name not in first_seen]
    assert first_seen == ["small", "large", "late"]


def test_a_new_request_leaves_each_running_one_a_block_to_grow_by():
    scheduler = make_scheduler(blocks=4, block_size=4)
    scheduler.add(make_request("a", prompt=4, max_tokens=8))
    scheduler.add(make_request("b", prompt=12, max_tokens=1))
    assert [name for name, *_ in spans(run_step(scheduler)[0])] == ["a"]
    while scheduler.has_work:
        run_step(scheduler)
    assert scheduler.preemptions == 0


def test_the_newest_is_preempted_to_the_front_and_everyone_ends():  # bug 2
    scheduler = make_scheduler(blocks=6, block_size=4)
    for name in "abc":
        scheduler.add(make_request(name, prompt=4, max_tokens=12))
    ended = []
    for _ in range(200):
        _, tokens = run_step(scheduler)
        if scheduler.preemptions == 1 and not ended:
            assert scheduler.waiting[0].request_id in {"b", "c"}
        ended += [message.request_id for message in tokens if message.finish_reason]
    assert scheduler.preemptions > 0
    assert ended == ["a", "b", "c"]


def test_a_preempted_request_loses_and_repeats_no_token():  # bug 6
    scheduler = make_scheduler(blocks=5, block_size=4)
    scheduler.add(make_request("a", prompt=4, max_tokens=12))
    scheduler.add(make_request("b", prompt=4, max_tokens=12))
    emitted = {"a": [], "b": []}
    for token in range(200):
        for message in run_step(scheduler, token=token % 8)[1]:
            emitted[message.request_id] += message.token_ids
            if message.finish_reason is None:
                [request] = [r for r in (*scheduler.running, *scheduler.waiting) if r.request_id == message.request_id]
                assert request.token_ids[4:] == emitted[message.request_id]
    assert scheduler.preemptions > 0
    assert [len(tokens) for tokens in emitted.values()] == [12, 12]


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_cancelling_frees_everything_at_any_time(steps):  # bug 9
    scheduler = make_scheduler(budget=3)
    scheduler.add(make_request("a", prompt=7, max_tokens=20))
    scheduler.add(make_request("b", prompt=7, max_tokens=20))
    for _ in range(steps):
        run_step(scheduler)
    for name in ("a", "unknown", "b", "b"):
        scheduler.cancel(name)
    assert not scheduler.has_work
    assert scheduler.blocks.problems([]) == []
    assert scheduler.blocks.used == 0


class History(RuleBasedStateMachine):
    """Random arrivals, cancellations, stop tokens and steps over a small pool that often runs dry."""

    @initialize(
        blocks=st.integers(2, 12), block_size=st.sampled_from([1, 2, 4]), max_seqs=st.integers(1, 5),
        budget=st.integers(1, 12), seed=st.integers(0, 2**16),
    )  # fmt: skip
    def begin(self, blocks, block_size, max_seqs, budget, seed):
        self.scheduler = make_scheduler(blocks, block_size, max_seqs, budget)
        self.random = random.Random(seed)
        self.live = {}
        self.added = 0

    @rule(prompt=st.integers(1, 30), max_tokens=st.integers(1, 30))
    def add(self, prompt, max_tokens):
        request = make_request(f"r{self.added}", prompt, max_tokens)
        fits = prompt + max_tokens <= self.scheduler.limits.max_request_tokens
        assert (self.scheduler.refusal(request) is None) == fits
        if fits:
            self.added += 1
            self.live[request.request_id] = request
            self.scheduler.add(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.scheduler.cancel(name)
        assert self.live.pop(name).block_table == []

    @precondition(lambda self: self.live)
    @rule()
    def step(self):
        scheduler, limits = self.scheduler, self.scheduler.limits
        oldest = scheduler.running[0] if scheduler.running else scheduler.waiting[0]
        before = oldest.computed
        chunks = scheduler.schedule()
        assert 0 < sum(chunk.end - chunk.start for chunk in chunks) <= limits.max_batched_tokens
        assert len({chunk.request for chunk in chunks}) == len(chunks)
        decoding = [len(chunk.request.token_ids) - chunk.start == 1 for chunk in chunks if chunk.start]
        assert decoding == sorted(decoding, reverse=True)
        for chunk in chunks:
            assert chunk.start == chunk.request.computed < chunk.end <= len(chunk.request.token_ids)
            assert chunk.end <= len(chunk.request.block_table) * limits.block_size
        sampled = [self.random.choice([1, 2, 3, 4, STOP]) for chunk in chunks if chunk.samples]
        for message in scheduler.complete(chunks, sampled):
            request = self.live[message.request_id]
            assert request.generated <= request.sampling.max_tokens
            if message.finish_reason:
                assert request.block_table == []
                del self.live[message.request_id]
        assert oldest.computed > before, "the oldest request must advance in every step"

    @invariant()
    def sound(self):
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        tables = [request.block_table for request in scheduler.running]
        assert scheduler.blocks.problems(tables) == []
        assert all(not request.block_table and not request.computed for request in scheduler.waiting)
        assert scheduler.blocks.free + scheduler.blocks.used == scheduler.blocks.total
        assert len(scheduler.running) <= scheduler.limits.max_seqs
        assert {*scheduler.running, *scheduler.waiting} == set(self.live.values())

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        bound = sum(request.prompt_length + request.sampling.max_tokens for request in self.live.values()) ** 2 + 1
        while self.live and bound:
            self.step()
            bound -= 1
        assert not self.live, "some request never ended"
        assert not self.scheduler.has_work
        assert self.scheduler.blocks.free == self.scheduler.blocks.total


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
