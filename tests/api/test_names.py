"""Object names stay valid and distinct however long the parts are."""

import re

from hypothesis import given
from hypothesis import strategies as st

from multimodel_api import names

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


def test_short_names_stay_readable() -> None:
    assert names.router_name("chat") == "chat-router"
    assert names.model_object_name("chat", "qwen") == "chat-model-qwen"


@given(labels, labels)
def test_names_are_dns_labels(multimodel: str, model: str) -> None:
    assert DNS_LABEL.fullmatch(names.model_object_name(multimodel, model))
    assert DNS_LABEL.fullmatch(names.router_name(multimodel))


@given(st.text(min_size=1, max_size=300))
def test_any_text_becomes_a_dns_label(text: str) -> None:
    assert DNS_LABEL.fullmatch(names.bounded_name(text))


def test_long_names_that_share_a_beginning_stay_distinct() -> None:
    assert names.model_object_name("m" * 40, "x" * 60 + "1") != names.model_object_name("m" * 40, "x" * 60 + "2")
