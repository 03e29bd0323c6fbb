"""Prefix sharing: what is found, what must never be, and in which order it is lost."""

import pytest

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.messages import Embed, Generate, Sampling
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.paged_scheduler import PagedScheduler
from multimodel_server.engine.prefix import DIGEST_BYTES, PrefixCache
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Limits

TEXT = [7, 3, 8, 1, 5, 2, 6, 4, 9, 0, 1, 1]  # three blocks


def make_scheduler(blocks=16, budget=64, **policy):
    return PagedScheduler(Limits(4, budget, blocks * 4, 4, 10, **policy), BlockPool(blocks))


def generate(name, prompt, max_tokens=1, **fields):
    return Request.of(Generate(name, prompt, Sampling(max_tokens=max_tokens), **fields))


def serve(scheduler, request, token=0):
    """Compute a request to its end, alone; return its first chunk and what was told."""
    scheduler.add(request)
    first, told = None, []
    while scheduler.has_work:
        chunks = scheduler.schedule()
        first = first or chunks[0]
        outcome = Outcome(embedding=[1.0]) if request.pools else Outcome(token)
        told += scheduler.complete(chunks, [outcome] * sum(chunk.samples for chunk in chunks))
        assert scheduler.problems() == []
    return first, told


def found(scheduler, request):
    """Return the number of leading tokens that need no computing."""
    return serve(scheduler, request)[0].start


def test_a_common_beginning_is_computed_once():
    scheduler = make_scheduler()
    assert found(scheduler, generate("a", [*TEXT, 2])) == 0
    assert found(scheduler, generate("b", [*TEXT, 3, 3])) == 12
    assert found(scheduler, generate("c", [*TEXT[:9], 3])) == 8
    assert found(scheduler, generate("d", TEXT[:3])) == 0
    assert (scheduler.prefixes.lookups, scheduler.prefixes.hits) == (13 + 14 + 10 + 3, 12 + 8)


@pytest.mark.parametrize("length", [4, 8, 12])
def test_a_prompt_found_whole_still_computes_a_token(length):  # bug 4
    scheduler = make_scheduler()
    serve(scheduler, generate("a", TEXT[:length]))
    chunk, [tokens] = serve(scheduler, generate("b", TEXT[:length]))
    assert (chunk.start, chunk.end, tokens.cached_tokens) == (length - 4, length, length - 4)


def test_the_answer_of_a_turn_is_found_in_the_next():
    scheduler = make_scheduler()
    serve(scheduler, generate("a", TEXT[:6], max_tokens=7), token=5)
    assert found(scheduler, generate("b", [*TEXT[:6], *[5] * 7, 1])) == 12


def test_cached_tokens_are_told_with_the_first_token_only():
    scheduler = make_scheduler()
    serve(scheduler, generate("a", TEXT))
    _, told = serve(scheduler, generate("b", [*TEXT, 1], max_tokens=3))
    assert [tokens.cached_tokens for tokens in told] == [12, 0, 0]


def test_a_block_stands_for_all_that_came_before_it():
    scheduler = make_scheduler()
    serve(scheduler, generate("a", TEXT))
    assert found(scheduler, generate("b", [*TEXT[4:8], *TEXT[4:]])) == 0


def test_salts_share_with_themselves_alone():  # bugs 13 and 14
    scheduler = make_scheduler(blocks=32)
    salts = ["", "a", "b", "block", "cache_salt", "\x00"]
    for salt in salts:
        assert found(scheduler, generate("first", TEXT, cache_salt=salt)) == 0
    for salt in salts:
        assert found(scheduler, generate("second", [*TEXT, 1], cache_salt=salt)) == 12


def test_digests_are_wide_and_differ_from_engine_to_engine():  # bug 13
    digests = []
    for _ in range(2):
        request = generate("a", TEXT)
        PrefixCache(BlockPool(4), 4).find(request)
        digests += request.digests
    assert len(set(digests)) == len(digests) == 4
    assert {len(digest) for digest in digests} == {DIGEST_BYTES} == {16}


def test_a_new_engine_knows_nothing_of_the_last():  # bug 17
    serve(make_scheduler(), generate("a", TEXT))
    assert found(make_scheduler(), generate("b", TEXT)) == 0


@pytest.mark.parametrize("policy", [{"prefix_cache_n": 0}, {"kv_cache": False}])
def test_switched_off_nothing_is_found_and_nothing_kept(policy):
    scheduler = make_scheduler(**policy)
    serve(scheduler, generate("a", TEXT))
    assert found(scheduler, generate("b", [*TEXT, 1])) == 0
    assert (scheduler.blocks.cached, scheduler.prefixes.lookups, scheduler.prefixes.hits) == (0, 0, 0)


def test_embeddings_share_prefixes_and_prompt_logprobs_compute_all():
    scheduler = make_scheduler()
    serve(scheduler, generate("a", TEXT))
    assert found(scheduler, Request.of(Embed("b", [*TEXT, 1]))) == 12
    assert found(scheduler, generate("c", [*TEXT, 1], prompt_logprobs=0)) == 0
    assert scheduler.prefixes.hits == 12


def test_what_is_not_computed_yet_is_not_found():
    scheduler = make_scheduler(budget=8)
    scheduler.add(generate("a", TEXT))
    chunks = scheduler.schedule()
    other = generate("b", [*TEXT, 1])
    assert scheduler.prefixes.find(other) == []
    scheduler.complete(chunks, [])
    assert len(scheduler.prefixes.find(other)) == 2


def test_requests_that_come_at_once_compute_their_common_prompt_once():
    scheduler = make_scheduler(blocks=32)
    for name in "abc":
        scheduler.add(generate(name, [*TEXT, 1], max_tokens=2))
    scheduler.add(generate("other", [2] * 5))
    steps = []
    while scheduler.has_work:
        chunks = scheduler.schedule()
        steps.append([(chunk.request.request_id, chunk.start, chunk.end) for chunk in chunks])
        scheduler.complete(chunks, [Outcome(0)] * len(chunks))
    assert steps[0] == [("a", 0, 13)]
    assert sorted(steps[1]) == [("a", 13, 14), ("b", 12, 13), ("c", 12, 13), ("other", 0, 5)]


def test_little_in_common_is_not_waited_for():
    scheduler = make_scheduler()
    for name, last in (("a", 1), ("b", 2)):
        scheduler.add(generate(name, [*TEXT[:4], *[last] * 5]))
    assert [chunk.start for chunk in scheduler.schedule()] == [0, 0]


def test_a_failed_step_leaves_nothing_to_be_found():
    scheduler = make_scheduler(budget=8)
    request = generate("a", TEXT)
    scheduler.add(request)
    scheduler.complete(scheduler.schedule(), [])
    scheduler.schedule()
    scheduler.fail(request, "broken")
    assert scheduler.problems() == []
    assert scheduler.blocks.used == 0
    assert found(scheduler, generate("b", TEXT)) == 8


def test_the_tail_of_a_text_is_lost_before_its_head():  # bug 41
    scheduler = make_scheduler(blocks=4)
    serve(scheduler, generate("a", TEXT))
    serve(scheduler, generate("b", [9] * 8))
    assert scheduler.blocks.evictions == 1
    assert found(scheduler, generate("c", TEXT)) == 8


def test_finding_a_text_makes_it_the_last_to_be_lost():
    scheduler = make_scheduler(blocks=4)
    serve(scheduler, generate("a", TEXT[:5]))
    serve(scheduler, generate("b", [2] * 5))
    serve(scheduler, generate("c", TEXT[:5]))
    serve(scheduler, generate("d", [3] * 12))
    assert found(scheduler, generate("e", TEXT[:5])) == 4


def test_a_found_block_is_not_evicted_by_its_own_finder():
    scheduler = make_scheduler(blocks=4)
    serve(scheduler, generate("a", TEXT))
    chunk, _ = serve(scheduler, generate("b", [*TEXT[:8], 3, 3, 3, 3], max_tokens=4))
    assert (chunk.start, chunk.end) == (8, 12)


def test_a_preempted_request_finds_its_own_blocks_and_computes_from_there():  # bug 5
    scheduler = make_scheduler(blocks=8)
    old, young = generate("old", TEXT[:8], max_tokens=20), generate("young", TEXT[2:10], max_tokens=20)
    scheduler.add(old)
    scheduler.add(young)
    while not scheduler.preemptions:
        chunks = scheduler.schedule()
        scheduler.complete(chunks, [Outcome(0)] * len(chunks))
    length = len(young.token_ids)
    scheduler.cancel("old")
    [chunk] = scheduler.schedule()
    assert (chunk.start, chunk.end, chunk.samples) == (12, length, True)  # its last full block went to the old one
    assert scheduler.prefixes.hits == 0


def test_a_growing_text_is_hashed_once(monkeypatch):
    hashed = []
    digest = PrefixCache._digest
    monkeypatch.setattr(PrefixCache, "_digest", lambda *given: hashed.append(given) or digest(*given))
    serve(make_scheduler(), generate("a", TEXT[:6], max_tokens=10))
    assert len(hashed) == 1 + 15 // 4
