"""The paged scheduler against its promises, by examples named after what they prevent.

Prompts differ from request to request, so that none finds another's; prefix sharing has tests of its own.
"""

import pytest

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.messages import Embed, Embedded, Generate, RequestFailed, Sampling, TokenLogprobs
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.paged_scheduler import PagedScheduler
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Limits
from multimodel_server.engine.schedulers import scheduler_for

STOP = 9


def make_scheduler(blocks=16, block_size=4, max_seqs=4, budget=32, **policy):
    limits = Limits(max_seqs, budget, blocks * block_size, block_size, vocab_size=10, **policy)
    return scheduler_for(limits, blocks)


def make_request(name, prompt=5, max_tokens=4, priority=0, prompt_ids=None):
    sampling = Sampling(max_tokens=max_tokens, stop_token_ids=frozenset({STOP}))
    ids = [ord(name[0]) % 8] * prompt if prompt_ids is None else prompt_ids
    return Request.of(Generate(name, ids, sampling, priority))


def land(scheduler, chunks, token=2):
    return scheduler.complete(chunks, [Outcome(token)] * sum(chunk.samples for chunk in chunks))


def run_step(scheduler, token=2):
    chunks = scheduler.schedule()
    told = land(scheduler, chunks, token)
    assert scheduler.problems() == []
    return chunks, told


def names(requests):
    return [request.request_id for request in requests]


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
        (make_request("a", prompt=61, max_tokens=4), "65 tokens; at most 64 fit: ask for at most 3"),
        (make_request("a", prompt=64, max_tokens=4), "68 tokens; at most 64 fit: shorten the prompt of 64"),
        (make_request("a", prompt=0), "prompt is empty"),
        (make_request("a", max_tokens=0), "max_tokens is 0"),
        (make_request("a", prompt_ids=[1, 10]), "outside 0..9"),
        (make_request("a", prompt_ids=[-1, 1]), "outside 0..9"),
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
        PagedScheduler(Limits(4, 32, 17, 4, 10), BlockPool(4))


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
    assert names(scheduler.waiting) == ["c"]


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
    assert scheduler.problems() == []
    assert scheduler.blocks.used == 0


def test_a_request_in_a_step_is_told_of_as_the_model_said():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", max_tokens=3))
    chosen, prompt = TokenLogprobs(2, -0.5), [TokenLogprobs(1, -0.1)]
    [first] = scheduler.complete(scheduler.schedule(), [Outcome(2, logprobs=chosen, prompt_logprobs=prompt)])
    assert (first.token_ids, first.logprobs, first.prompt_logprobs) == ([2], [chosen], prompt)
    [last] = scheduler.complete(scheduler.schedule(), [Outcome(STOP, logprobs=chosen)])
    assert (last.token_ids, last.logprobs, last.finish_reason) == ([], None, "stop")


def test_an_embedding_request_ends_once_its_prompt_is_computed():
    scheduler = make_scheduler(budget=4)
    request = Request.of(Embed("a", [1, 2, 3, 4, 5]))
    assert scheduler.refusal(request) is None
    assert "empty" in scheduler.refusal(Request.of(Embed("b", [])))
    scheduler.add(request)
    assert land(scheduler, scheduler.schedule()) == []
    chunks = scheduler.schedule()
    assert scheduler.complete(chunks, [Outcome(embedding=[0.6, 0.8])]) == [Embedded("a", [0.6, 0.8])]
    assert (scheduler.has_work, scheduler.blocks.used) == (False, 0)


def test_a_row_that_failed_ends_alone():
    scheduler = make_scheduler()
    for name in "abc":
        scheduler.add(make_request(name, max_tokens=2))
    told = scheduler.complete(scheduler.schedule(), [Outcome(2), Outcome(error="bad grammar"), Outcome()])
    assert told[1:] == [RequestFailed("b", "bad grammar"), RequestFailed("c", "the model gave no result")]
    assert names(scheduler.running) == ["a"]
    assert scheduler.problems() == []


def test_a_request_whose_chunk_was_not_computed_ends_and_the_others_go_on():
    scheduler = make_scheduler()
    for name in "ab":
        scheduler.add(make_request(name, max_tokens=2))
    first, second = scheduler.schedule()
    assert scheduler.fail(first.request, "broken") == RequestFailed("a", "broken")
    assert len(land(scheduler, [second])) == 1
    assert (names(scheduler.running), scheduler.blocks.used) == (["b"], 2)
    assert scheduler.problems() == []


def test_outcomes_that_match_no_chunk_are_refused_and_change_nothing():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    chunks = scheduler.schedule()
    for outcomes in ([], [Outcome(2)] * 2):
        with pytest.raises(ValueError, match="zip"):
            scheduler.complete(chunks, outcomes)
    assert len(land(scheduler, chunks)) == 1


def test_the_better_priority_goes_first_and_equals_by_arrival():
    scheduler = make_scheduler(max_seqs=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1), ("e", 0)):
        scheduler.add(make_request(name, max_tokens=1, priority=priority))
    order = []
    while scheduler.has_work:
        order += names(chunk.request for chunk in run_step(scheduler)[0])
    assert order == ["d", "b", "e", "a", "c"]


def test_an_urgent_prompt_does_not_wait_behind_a_long_one():
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request("long", prompt=30))
    run_step(scheduler)
    scheduler.add(make_request("urgent", prompt=6, priority=-1))
    assert spans(run_step(scheduler)[0]) == [("urgent", 0, 6), ("long", 8, 10)]
    assert spans(run_step(scheduler)[0]) == [("urgent", 6, 7), ("long", 10, 17)]


def test_prompts_hold_up_answers_by_no_more_than_their_allowance():
    scheduler = make_scheduler(budget=30)
    scheduler.prompt_allowance = 4
    scheduler.add(make_request("a", prompt=10, max_tokens=9))
    assert spans(run_step(scheduler)[0]) == [("a", 0, 10)], "nothing decodes yet"
    for name in "bc":
        scheduler.add(make_request(name, prompt=6, max_tokens=9))
    assert spans(run_step(scheduler)[0]) == [("a", 10, 11), ("b", 0, 4)]
    assert names(scheduler.waiting) == ["c"]
    assert spans(run_step(scheduler)[0]) == [("a", 11, 12), ("b", 4, 6), ("c", 0, 2)]


def test_growth_preempts_the_newest_of_the_worst_priority():
    scheduler = make_scheduler(blocks=9, block_size=4)
    for name, priority in (("a", 1), ("b", 1), ("c", 0), ("d", -1)):
        scheduler.add(make_request(name, prompt=3, max_tokens=12, priority=priority))
        run_step(scheduler)
    while not scheduler.preemptions:
        run_step(scheduler)
    assert names(scheduler.waiting) == ["b"]


def test_a_better_priority_takes_the_place_of_the_newest_of_the_worst():
    scheduler = make_scheduler(max_seqs=3)
    for name, priority in (("a", 1), ("b", 2), ("c", 2)):
        scheduler.add(make_request(name, max_tokens=20, priority=priority))
    run_step(scheduler)
    scheduler.add(make_request("d", priority=1))
    run_step(scheduler)
    assert (names(scheduler.running), names(scheduler.waiting)) == (["a", "b", "d"], ["c"])
    scheduler.add(make_request("e", priority=2))
    run_step(scheduler)
    assert (names(scheduler.running), names(scheduler.waiting)) == (["a", "b", "d"], ["c", "e"])


def test_nobody_is_preempted_in_vain_for_a_request_that_still_would_not_fit():
    scheduler = make_scheduler(blocks=8)
    scheduler.add(make_request("a", prompt=16, max_tokens=4, priority=0))
    scheduler.add(make_request("b", prompt=4, max_tokens=4, priority=1))
    run_step(scheduler)
    scheduler.add(make_request("c", prompt=20, max_tokens=4, priority=0))
    run_step(scheduler)
    assert (names(scheduler.running), scheduler.preemptions) == (["a", "b"], 0)


def test_a_hundredth_of_the_blocks_is_left_free_unless_nothing_runs():
    scheduler = make_scheduler(blocks=1000, block_size=4, budget=4000)
    scheduler.add(make_request("a", prompt=3940, max_tokens=1))
    scheduler.add(make_request("b", prompt=24, max_tokens=1))
    assert names(chunk.request for chunk in scheduler.schedule()) == ["a"]
    alone = make_scheduler(blocks=1000, block_size=4, budget=4000)
    alone.add(make_request("a", prompt=3999, max_tokens=1))
    assert len(alone.schedule()) == 1


def test_without_a_cache_each_token_computes_the_whole_text_again():
    scheduler = make_scheduler(kv_cache=False, paged=False)
    scheduler.add(make_request("a", prompt=5, max_tokens=3))
    for length in (5, 6, 7):
        assert spans(run_step(scheduler)[0]) == [("a", 0, length)]
        assert scheduler.blocks.used == 0
    assert not scheduler.has_work


def test_without_a_cache_a_long_text_takes_several_steps():
    scheduler = make_scheduler(kv_cache=False, budget=4)
    scheduler.add(make_request("a", prompt=5, max_tokens=2))
    assert [spans(run_step(scheduler)[0])[0][1:] for _ in range(4)] == [(0, 4), (4, 5), (0, 4), (4, 6)]


def test_the_next_step_is_planned_while_one_runs():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", prompt=5, max_tokens=3))
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert spans(first) + spans(second) == [("a", 0, 5), ("a", 5, 6)]
    [tokens] = land(scheduler, first, token=7)
    assert tokens.token_ids == [7]
    third = scheduler.schedule()
    assert scheduler.schedule() == [], "its last token is on its way"
    land(scheduler, second)
    assert land(scheduler, third)[0].finish_reason == "length"
    assert (spans(third), scheduler.blocks.used) == ([("a", 6, 7)], 0)


def test_a_step_planned_beyond_the_end_is_dropped_and_its_blocks_wait_for_it():  # bug 7
    scheduler = make_scheduler()
    scheduler.add(make_request("a", prompt=4, max_tokens=8))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert land(scheduler, first, token=STOP)[0].finish_reason == "stop"
    assert (scheduler.has_work, scheduler.blocks.used) == (False, 2)
    assert scheduler.problems() == []
    assert land(scheduler, second) == []
    assert scheduler.blocks.used == 0
    assert scheduler.problems() == []


@pytest.mark.parametrize("end", [lambda s, r: s.cancel(r.request_id), lambda s, r: s.fail(r, "broken")])
def test_blocks_of_a_request_that_ends_in_flight_come_back_when_it_lands(end):  # bugs 7 and 9
    scheduler = make_scheduler()
    scheduler.add(make_request("a", prompt=4, max_tokens=8))
    steps = [scheduler.schedule(), scheduler.schedule(), scheduler.schedule()]
    [chunk] = steps[0]
    land(scheduler, steps.pop(0))
    end(scheduler, chunk.request)
    assert scheduler.blocks.used == 2
    while chunk.request.in_flight:
        assert land(scheduler, steps.pop(0)) == []
    assert scheduler.blocks.used == 0


def test_a_token_in_flight_of_a_preempted_request_is_neither_lost_nor_repeated():  # bug 6
    scheduler = make_scheduler(blocks=4, block_size=4)
    scheduler.add(make_request("a", prompt=4, max_tokens=10))
    scheduler.add(make_request("b", prompt=3, max_tokens=5))
    in_flight, emitted = [scheduler.schedule()], {"a": [], "b": []}
    for token in range(60):
        in_flight.append(scheduler.schedule())
        for message in land(scheduler, in_flight.pop(0), token=token % 8):
            emitted[message.request_id] += message.token_ids
        assert scheduler.problems() == []
    assert scheduler.preemptions == 1
    assert not scheduler.has_work
    assert [len(tokens) for tokens in emitted.values()] == [10, 5]


def test_one_preemption_in_flight_is_enough():
    scheduler = make_scheduler(blocks=6, block_size=4)
    for name in "abc":
        scheduler.add(make_request(name, prompt=4, max_tokens=12))
    in_flight = [scheduler.schedule()]
    while not scheduler.preemptions:
        in_flight.append(scheduler.schedule())
        land(scheduler, in_flight.pop(0))
    assert scheduler.preemptions == 1
    assert (len(scheduler.running), names(scheduler.waiting)) == (2, ["c"])
