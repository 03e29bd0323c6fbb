"""The replicas that a model's load asks for."""

from collections.abc import Sequence

import pytest

from multimodel_api.scaling import Scaling
from multimodel_operator.autoscale import Change, Load, ScaleReason, decide, keeps

NOW = 10_000.0
UP_TO_4 = Scaling(max_replicas=4, target_requests=10)


def loads(*in_flight: int, complete: bool = True) -> list[Load]:
    """One load every 5 s, the last of them now."""
    first = NOW - 5 * (len(in_flight) - 1)
    return [Load(first + 5 * number, count, complete) for number, count in enumerate(in_flight)]


def change(seen: Sequence[Load], replicas: int, scaling: Scaling = UP_TO_4, idle_since: float | None = None) -> int:
    found = decide(seen, replicas, scaling, idle_since, NOW)
    return found.replicas if found else replicas


@pytest.mark.parametrize(("in_flight", "replicas"), [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (31, 4), (1000, 4)])
def test_one_load_is_enough_to_go_up_to_what_it_needs(in_flight: int, replicas: int) -> None:
    assert change(loads(in_flight), 1) == replicas


def test_an_incomplete_load_is_enough_to_go_up() -> None:
    assert change(loads(25, complete=False), 1) == 3


def test_replicas_go_only_after_the_load_has_been_low_for_long() -> None:
    quiet = [0] * 18
    assert change(loads(*quiet), 4) == 4  # 85 s
    assert change(loads(0, *quiet), 4) == 1  # 90 s
    assert change(loads(0, 0, 15, *quiet[2:]), 4) == 2
    assert change(loads(0, 0, 35, *quiet[2:]), 4) == 4


def test_replicas_never_go_while_a_router_is_not_heard() -> None:
    assert change([*loads(*[0] * 30)[:-1], Load(NOW, 0, complete=False)], 4) == 4


def test_a_peak_that_was_not_seen_whole_counts_too() -> None:
    seen = loads(*[0] * 30)
    assert change([*seen[:20], Load(seen[20].at, 25, complete=False), *seen[21:]], 4) == 3


def test_a_change_says_why() -> None:
    assert decide(loads(25), 1, UP_TO_4, None, NOW) == Change(
        3, ScaleReason.LOAD_ROSE, "25 requests in flight, 10 for each replica are the target"
    )
    assert decide(loads(*[5] * 19), 3, UP_TO_4, None, NOW) == Change(
        1, ScaleReason.LOAD_FELL, "at most 5 requests in flight for 90 s"
    )


def test_an_unloaded_model_is_nobody_elses_to_load() -> None:
    assert change(loads(100), 0) == 0
    assert change([], 0, Scaling(min_replicas=2)) == 0


def test_the_fewest_replicas_are_kept_without_any_load() -> None:
    assert change([], 1, Scaling(min_replicas=3)) == 3
    assert change(loads(*[0] * 30), 4, Scaling(min_replicas=2, max_replicas=4)) == 2


def test_replicas_that_others_added_stay_where_there_is_no_maximum() -> None:
    assert change(loads(*[0] * 30), 5, Scaling()) == 5
    assert change(loads(1000), 1, Scaling()) == 1


def test_more_replicas_than_the_maximum_go() -> None:
    assert change(loads(*[1000] * 30), 9) == 4


def test_others_scale_an_external_model() -> None:
    external = Scaling(min_replicas=2, autoscaler="external")
    assert change(loads(1000), 1, external) == 1
    assert change(loads(*[0] * 30), 5, external) == 5


@pytest.mark.parametrize(("idle_for", "replicas"), [(0, 2), (59, 2), (60, 0), (1000, 0)])
def test_an_idle_model_is_unloaded_when_its_time_is_over(idle_for: float, replicas: int) -> None:
    scaling = Scaling(min_replicas=2, idle_seconds=60)
    assert change(loads(0), 2, scaling, NOW - idle_for) == replicas


def test_a_model_is_not_idle_while_it_loads_or_works_or_may_work() -> None:
    scaling = Scaling(idle_seconds=60)
    assert change(loads(0), 1, scaling, idle_since=None) == 1
    assert change(loads(1), 1, scaling, idle_since=0) == 1
    assert change(loads(0, complete=False), 1, scaling, idle_since=0) == 1


def test_only_what_later_decisions_need_is_kept() -> None:
    seen = loads(*range(40))
    kept = keeps(seen, NOW - 90)
    assert kept[0].at == NOW - 90
    assert kept == seen[-19:]
    assert keeps(seen, NOW - 92)[0].at == NOW - 95
    assert keeps(seen[-2:], NOW - 90) == seen[-2:]
