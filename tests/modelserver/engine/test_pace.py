"""A long prompt is computed in pieces that hold up running answers only so far."""

import pytest

from multimodel_server.engine.pace import LEAST, SLOWDOWN, Pace


def observe(pace, decode_seconds, token_seconds, steps=40):
    """Feed the steps of a machine with these costs, each prompt chunk as large as allowed."""
    for _ in range(steps):
        pace.observe(8, 0, decode_seconds)
        allowed = pace.allowance
        pace.observe(8, allowed, decode_seconds + allowed * token_seconds)


def test_unknown_costs_begin_with_the_first_allowance():
    pace = Pace(first_allowance=64)
    assert pace.allowance == 64
    pace.observe(0, 4096, 100.0)  # nothing decoded: nobody was held up, nothing is learnt
    assert pace.allowance == 64


@pytest.mark.parametrize(("decode_seconds", "token_seconds"), [(0.2, 0.01), (0.01, 0.00002), (0.2, 0.001)])
def test_a_step_beside_a_prompt_takes_at_most_the_slowdown(decode_seconds, token_seconds):
    pace = Pace(first_allowance=64)
    observe(pace, decode_seconds, token_seconds)
    step = decode_seconds + pace.allowance * token_seconds
    assert step <= SLOWDOWN * decode_seconds * 1.01
    assert step >= SLOWDOWN * decode_seconds * 0.9


def test_a_prompt_always_advances():
    pace = Pace(first_allowance=64)
    observe(pace, 0.001, 1.0)
    assert pace.allowance == LEAST
    pace.observe(8, 16, 0.0005)  # quicker than without a prompt: a measurement can be that odd
    assert pace.allowance >= LEAST


def test_it_follows_a_machine_that_changes():
    pace = Pace(first_allowance=64)
    observe(pace, 0.2, 0.001)
    before = pace.allowance
    observe(pace, 0.2, 0.002)
    assert pace.allowance == pytest.approx(before / 2, rel=0.1)
