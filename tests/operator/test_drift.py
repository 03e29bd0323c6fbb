"""Whether a live object holds what is wanted, in spite of defaults, other writers and the API server's spelling."""

from typing import Any

import pytest

from multimodel_operator.drift import ANNOTATION_APPLIED, difference, stamped


@pytest.mark.parametrize(
    ("wanted", "live"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": {}}, {}),
        ({"a": False, "b": "", "c": []}, {}),
        ({"cpu": "1000m"}, {"cpu": "1"}),
        ({"gpu": 1}, {"gpu": "1"}),
        ({"memory": "1024Mi"}, {"memory": "1Gi"}),
        ({"memory": "1500M"}, {"memory": "1.5G"}),
        ({"disk": "2k"}, {"disk": "2000"}),
        ({"disk": "2e3"}, {"disk": "2k"}),
        ({"disk": "0.5Ei"}, {"disk": "512Pi"}),
        ({"disk": ".5G"}, {"disk": "500M"}),
        ({"list": ["x"]}, {"list": ["x"]}),
        ({"containers": [{"name": "b"}]}, {"containers": [{"name": "a"}, {"name": "b", "image": "i"}]}),
    ],
)
def test_held(wanted: Any, live: Any) -> None:
    assert difference(wanted, live) is None


@pytest.mark.parametrize(
    ("wanted", "live", "path"),
    [
        ({"a": 1}, {"a": 2}, ".a"),
        ({"a": 1}, {}, ".a"),
        ({"a": {"b": {"c": "x"}}}, {"a": {"b": {}}}, ".a.b.c"),
        ({"list": ["x", "y"]}, {"list": ["x"]}, ".list"),
        ({"list": [{"name": "a", "v": 1}]}, {"list": [{"name": "a", "v": 2}]}, ".list[0]"),
        ({"a": "sNaN"}, {"a": "NaN"}, ".a"),
        ({"cpu": "1"}, {"cpu": "1m"}, ".cpu"),
        ({"a": "m"}, {"a": "k"}, ".a"),
        ({"a": True}, {"a": "x"}, ".a"),
        ({"a": {"b": 1}}, {"a": "x"}, ".a"),
        ({"digest": "57912345e9812345"}, {"digest": "c0ffee"}, ".digest"),
        ({"digest": "0e12345678912345"}, {"digest": "0e54321987654321"}, ".digest"),
    ],
)
def test_not_held(wanted: Any, live: Any, path: str) -> None:
    assert difference(wanted, live) == path


def test_the_stamp_tells_intents_apart_whatever_their_order() -> None:
    def stamp(**spec: Any) -> str:
        digest: str = stamped({"metadata": {}, "spec": spec})["metadata"]["annotations"][ANNOTATION_APPLIED]
        return digest

    assert stamp(a=1, b=2) == stamp(b=2, a=1)
    assert stamp(a=1) != stamp(a=1, b=2)
