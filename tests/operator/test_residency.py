"""Who holds a place, who makes room, who waits."""

from dataclasses import replace

import pytest

from multimodel_operator.residency import Admit, Patience, Tenant, Yield, admissions, blocked, evictions, overfull

NOW = 1_000.0
PATIENCE = Patience(quiet=3, turn=30)
GPU = frozenset({"nvidia.com/gpu"})


def serving(name: str, *, since: float = 500, last_used: float = 600, in_flight: int = 0, **more: object) -> Tenant:
    facts = {"free": (f"{name}-1",), "ready_since": since, "last_used": last_used, "in_flight": in_flight} | more
    return Tenant(name, replicas=1, **facts)  # type: ignore[arg-type]


def waiting(name: str, *, since: float = 990, **more: object) -> Tenant:
    return Tenant(name, replicas=1, gated=(f"{name}-pod",), asked_at=since, **more)  # type: ignore[arg-type]


def leaving(name: str) -> Tenant:
    return Tenant(name, leaving=True)


def admitted(*tenants: Tenant, most: int | None) -> list[str]:
    return [admission.model for admission in admissions(tenants, most)]


def evicted(*tenants: Tenant, most: int | None) -> list[str]:
    return [eviction.model for eviction in evictions(tenants, most, NOW, PATIENCE)]


def test_models_are_let_in_in_the_order_of_asking_while_there_is_room() -> None:
    queue = waiting("c", since=3), waiting("a", since=2), waiting("b", since=1)
    assert admitted(*queue, most=2) == ["b", "a"]
    assert admitted(*queue, serving("d"), most=2) == ["b"]
    assert admitted(*queue, serving("d"), leaving("e"), most=2) == []
    assert admitted(*queue, serving("d"), leaving("e"), most=None) == ["b", "a", "c"]


def test_further_pods_of_a_model_with_a_place_are_let_in() -> None:
    growing = serving("a", gated=("a-2", "a-3"))
    assert admissions([growing, waiting("b")], 1) == [Admit("a", ("a-2", "a-3"))]


def test_a_model_that_comes_back_waits_behind_those_that_asked_before() -> None:
    back = waiting("a", since=995, leaving=True)
    assert admitted(back, most=1) == ["a"]
    assert admitted(back, waiting("b", since=990), most=1) == []
    assert admitted(back, waiting("b", since=999), most=1) == ["a"]


def test_a_model_that_is_not_wanted_any_more_waits_for_nothing() -> None:
    gone = replace(waiting("a"), replicas=0)
    assert admitted(gone, most=1) == []
    assert blocked([gone, serving("b")], 1) == []


def test_the_idle_model_that_was_used_longest_ago_makes_room() -> None:
    old, older = serving("old", last_used=700), serving("older", last_used=600)
    assert evicted(old, older, waiting("new"), most=2) == ["older"]
    assert evicted(old, older, waiting("new"), waiting("newer"), most=2) == ["older", "old"]
    assert evicted(old, serving("busy", last_used=1, in_flight=1), waiting("new"), most=2) == ["old"]


def test_nobody_makes_room_that_is_not_needed() -> None:
    assert evicted(serving("a"), serving("b"), most=2) == []
    assert evicted(serving("a"), waiting("new"), most=2) == []
    assert evicted(serving("a"), leaving("b"), waiting("new"), most=2) == []


def test_a_model_that_has_just_been_used_or_loaded_is_not_idle_yet() -> None:
    assert evicted(serving("a", last_used=NOW - 2), waiting("b"), most=1) == []
    assert evicted(serving("a", since=NOW - 2), waiting("b"), most=1) == []


@pytest.mark.parametrize(
    ("served_since", "asked_at", "goes"),
    [(NOW - 29, NOW - 100, False), (NOW - 100, NOW - 29, False), (NOW - 30, NOW - 30, True)],
)
def test_a_busy_model_serves_its_turn_and_no_longer(served_since: float, asked_at: float, goes: bool) -> None:
    busy = serving("a", since=served_since, in_flight=9)
    due = [Yield("a", ("a-1",), "its turn of 30 s is over, and model b needs its place")]
    assert evictions([busy, waiting("b", since=asked_at)], 1, NOW, PATIENCE) == (due if goes else [])


def test_the_busy_model_that_has_served_the_longest_goes_first() -> None:
    busy = serving("a", since=200, in_flight=9), serving("b", since=100, in_flight=1)
    assert evicted(*busy, waiting("c", since=900), most=2) == ["b"]


def test_a_model_that_loads_is_left_alone_unless_it_fails() -> None:
    loading = Tenant("a", replicas=1, free=("pod",))
    assert evicted(loading, waiting("b", since=1), most=1) == []
    assert evicted(replace(loading, failing=True), waiting("b"), most=1) == ["a"]
    assert evicted(replace(loading, failing=True, in_flight=1), waiting("b"), most=1) == []


def test_fewer_places_than_before_cost_idle_models_theirs() -> None:
    idle, busy = serving("idle"), serving("busy", since=1, in_flight=1)
    assert overfull([idle, busy], 1) == 1
    assert evicted(idle, busy, most=1) == ["idle"]
    assert evicted(busy, serving("busier", in_flight=2), most=1) == []
    assert evicted(leaving("gone"), idle, most=1) == []
    assert overfull([idle, busy], None) == 0


def test_an_idle_model_makes_its_device_free_for_one_that_finds_none() -> None:
    starved = Tenant("new", replicas=1, free=("pod",), asked_at=990, starved_of=GPU, failing=True)
    assert blocked([starved], None) == [starved]
    assert evicted(serving("cpu"), starved, most=None) == []
    assert evicted(serving("gpu", devices=GPU), starved, most=None) == ["gpu"]
    assert evicted(serving("gpu", devices=GPU, in_flight=1, since=1), replace(starved, asked_at=1), most=None) == []
    assert evicted(serving("gpu", devices=GPU), replace(leaving("old"), devices=GPU), starved, most=None) == []


def test_nobody_is_unloaded_twice() -> None:
    starved = Tenant("new", replicas=1, free=("pod",), asked_at=990, starved_of=GPU)
    tenants = serving("a", devices=GPU), starved, waiting("b"), serving("c")
    assert sorted(evicted(*tenants, most=3)) == ["a"]
