"""Stop strings end the text where they begin, however the text is cut."""

from hypothesis import given, settings
from hypothesis import strategies as st

from multimodel_server.text.stops import StopFilter


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    sent = "".join(stop_filter.feed(piece) for piece in pieces)
    return sent + ("" if stop_filter.stopped else stop_filter.flush()), stop_filter.stopped


def test_nothing_of_a_stop_string_is_sent() -> None:
    stop_filter = StopFilter(["STOP"])
    assert [stop_filter.feed(piece) for piece in ("say S", "T", "O", "P and more", "more")] == ["say ", "", "", "", ""]
    assert stop_filter.stopped


def test_a_false_start_is_sent_as_soon_as_it_is_known() -> None:
    stop_filter = StopFilter(["\n\nUser"])
    assert [stop_filter.feed(piece) for piece in ("a\n", "\n", "b", "\n")] == ["a", "", "\n\nb", ""]
    assert stop_filter.flush() == "\n"


def test_only_the_longest_possible_start_is_held() -> None:
    assert StopFilter(["aab"]).feed("aaa") == "a"


def test_the_earliest_match_wins() -> None:
    assert run(["lazy", "fox"], ["the quick fox and the lazy dog"]) == ("the quick ", True)


def test_of_those_that_end_together_the_longest_wins() -> None:
    assert run(["b", "ab"], ["xab"]) == ("x", True)


def test_without_stop_strings_nothing_is_held() -> None:
    assert StopFilter([]).feed("text") == "text"


short = st.text("ab", max_size=6)


@settings(max_examples=300)
@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(short, max_size=8))
def test_cutting_the_text_changes_nothing(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert run(stops, pieces) == run(stops, list(whole)) == run(stops, [whole])
    sent, stopped = run(stops, pieces)
    assert whole.startswith(sent)
    assert stopped == any(stop in whole for stop in stops)
    assert not any(stop in sent for stop in stops)
