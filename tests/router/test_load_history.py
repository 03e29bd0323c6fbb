"""When a refused client may ask again: by how long this model's own loads took."""

from multimodel_api.state import ModelState
from multimodel_router.loads import MAX_RETRY_AFTER, REMEMBERED, UNKNOWN_SECONDS, LoadHistory


def loaded(history: LoadHistory, model: str, began: float, seconds: float) -> None:
    history.observe(model, ModelState.RELOADING, began)
    history.observe(model, ModelState.LOADED, began + seconds)
    history.observe(model, ModelState.UNLOADED, began + seconds)


def test_what_nobody_has_seen_is_expected_to_take_a_while() -> None:
    assert LoadHistory().retry_after("m", 100.0) == UNKNOWN_SECONDS


def test_the_median_of_the_last_loads_counts_and_each_model_has_its_own() -> None:
    history = LoadHistory()
    for seconds in (1000.0, 10.0, 12.0, 90.0, 11.0, 12.5):
        loaded(history, "m", 0.0, seconds)
    loaded(history, "other", 0.0, 2.2)
    assert history.taken("m") == [10.0, 12.0, 90.0, 11.0, 12.5]
    assert len(history.taken("m")) == REMEMBERED
    assert history.retry_after("m", 2000.0) == 12
    assert history.retry_after("other", 2000.0) == 3


def test_what_has_passed_of_a_load_is_taken_off() -> None:
    history = LoadHistory()
    loaded(history, "m", 0.0, 40.0)
    history.observe("m", ModelState.RELOADING, 100.0)
    history.observe("m", ModelState.RELOADING, 115.0)
    assert history.retry_after("m", 115.0) == 25
    assert history.retry_after("m", 500.0) == 1


def test_a_load_that_failed_or_was_ended_tells_nothing() -> None:
    history = LoadHistory()
    for end in (ModelState.INTERNAL_ERROR, ModelState.UNLOADED):
        history.observe("m", ModelState.RELOADING, 0.0)
        history.observe("m", end, 5.0)
        history.observe("m", ModelState.LOADED, 6.0)
    assert history.taken("m") == []


def test_nobody_is_sent_away_for_ever() -> None:
    history = LoadHistory()
    loaded(history, "m", 0.0, 10_000.0)
    assert history.retry_after("m", 20_000.0) == MAX_RETRY_AFTER
