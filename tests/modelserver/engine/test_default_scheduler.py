"""Without paged attention: first come, first served, equal lengths together, whole texts kept."""

from multimodel_server.engine.messages import Generate, Sampling
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Limits
from multimodel_server.engine.schedulers import scheduler_for


def make_scheduler(blocks=32, max_seqs=8, budget=64, prefix_cache_n=16):
    limits = Limits(max_seqs, budget, blocks * 4, 4, 10, paged=False, prefix_cache_n=prefix_cache_n)
    return scheduler_for(limits, blocks)


def request(name, prompt, max_tokens=4):
    return Request.of(Generate(name, prompt, Sampling(max_tokens=max_tokens)))


def add(scheduler, *names, length=5, max_tokens=4):
    for name in names:
        scheduler.add(request(name, [ord(name) % 10] * length, max_tokens))


def step(scheduler):
    chunks = scheduler.schedule()
    scheduler.complete(chunks, [Outcome(1)] * len(chunks))
    assert scheduler.problems() == []
    return "".join(chunk.request.request_id for chunk in chunks), {(chunk.start, chunk.end) for chunk in chunks}


def serve(scheduler, *requests):
    starts = []
    for one in requests:
        scheduler.add(one)
        starts.append(scheduler.schedule()[0])
        scheduler.complete(starts[-1:], [Outcome(1)])
        while scheduler.has_work:
            step(scheduler)
    return [chunk.start for chunk in starts]


def test_equal_lengths_are_computed_together():
    scheduler = make_scheduler()
    add(scheduler, "a", "b", "c")
    assert step(scheduler) == ("abc", {(0, 5)})
    assert step(scheduler) == ("abc", {(5, 6)})


def test_the_shortest_goes_first_and_the_others_gain_urgency():
    scheduler = make_scheduler()
    add(scheduler, "a", length=9)
    add(scheduler, "b", "c", length=3)
    assert [step(scheduler)[0] for _ in range(4)] == ["bc", "a", "bc", "a"]


def test_a_prompt_is_never_cut_even_beyond_the_budget():
    scheduler = make_scheduler(budget=8)
    add(scheduler, "a", "b", length=12)
    assert [step(scheduler) for _ in range(2)] == [("a", {(0, 12)}), ("b", {(0, 12)})]


def test_a_text_is_reserved_whole_so_nothing_is_preempted():
    scheduler = make_scheduler(blocks=5)
    add(scheduler, "a", "b", length=5, max_tokens=7)
    assert step(scheduler)[0] == "a"
    assert (len(scheduler.running), scheduler.blocks.used) == (1, 3)
    while scheduler.has_work:
        step(scheduler)
    assert scheduler.preemptions == 0
    assert scheduler.blocks.used == 0


def test_who_came_first_starts_first_whatever_would_fit():
    scheduler = make_scheduler(blocks=5)
    add(scheduler, "a", "b", length=5, max_tokens=7)
    add(scheduler, "c", length=1, max_tokens=1)
    step(scheduler)
    assert [waiting.request_id for waiting in scheduler.waiting] == ["b", "c"]


def test_a_text_that_goes_on_resumes_from_the_kept_one():
    scheduler = make_scheduler()
    assert serve(scheduler, request("a", [2] * 9), request("b", [2] * 9 + [1] * 5)) == [0, 12]


def test_only_so_many_texts_are_kept_and_the_oldest_goes():
    scheduler = make_scheduler(prefix_cache_n=2)
    texts = [[number] * 8 for number in (2, 3, 4)]
    serve(scheduler, *(request("a", text) for text in texts))
    assert serve(scheduler, request("b", texts[1]), request("c", texts[0])) == [4, 0]


def test_what_kept_texts_have_in_common_outlives_the_oldest():
    scheduler = make_scheduler(prefix_cache_n=2)
    serve(scheduler, request("a", [2] * 8), request("b", [2] * 8 + [3] * 4), request("c", [5] * 8))
    assert serve(scheduler, request("d", [2] * 9)) == [8]


def test_texts_are_kept_only_when_complete_and_only_if_any_are():
    scheduler = make_scheduler()
    scheduler.add(request("a", [2] * 8))
    step(scheduler)
    scheduler.cancel("a")
    assert serve(scheduler, request("b", [2] * 8)) == [0]
    assert serve(make_scheduler(prefix_cache_n=0), request("a", [2] * 8), request("b", [2] * 9)) == [0, 0]
