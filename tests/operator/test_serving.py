"""Ids follow the spec when what they are to mean can answer, and not before."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_api.served import Identity, identity_of
from multimodel_api.status import MultiModelStatus
from multimodel_operator import serving
from multimodel_operator.objects import Observed
from multimodel_operator.serving import Serving


def model(name: str, alias: str | None = None, source: str | None = None) -> dict[str, Any]:
    found = {"name": name, "plain": {"modelId": source or f"org/{name}"}}
    return found | ({"alias": alias} if alias else {})


def before(**ids: str) -> MultiModelStatus:
    """Models that were served: `a="chat"` is model a, with the source org/a, as chat."""
    shown = [{"name": n, "id": i, "canonicalId": f"org/{n}", "state": "loaded"} for n, i in ids.items()]
    return MultiModelStatus.model_validate({"models": shown, "defaultModel": shown[0]["id"] if shown else None})


def pod(name: str, alias: str | None = None, source: str | None = None, *, ready: bool = True) -> dict[str, Any]:
    arguments = [f"--model={source or f'org/{name}'}", *([f"--alias={alias}"] if alias else []), "--port=8000"]
    return {
        "metadata": {"name": f"{name}-pod", "labels": {"multimodel.dev/model": name}},
        "spec": {"containers": [{"name": "modelserver", "args": arguments}]},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def decided(
    models: list[dict[str, Any]], previous: MultiModelStatus, *pods: dict[str, Any], unloaded: tuple[str, ...] = ()
) -> Serving:
    named = {found["name"] for found in models} | {shown.name for shown in previous.models}
    deployments = tuple(
        {"kind": "Deployment", "metadata": {"name": f"mm-model-{n}"}, "spec": {"replicas": int(n not in unloaded)}}
        for n in named
    )
    spec = MultiModelSpec.model_validate({"models": models})
    return serving.decide(spec, previous, Observed({"metadata": {"name": "mm"}}, deployments, pods))


def ids(found: Serving) -> dict[str, str]:
    return {name: identity.id for name, identity in found.identities.items()}


def rendered(found: Serving) -> dict[str, tuple[str, str]]:
    return {model.name: tuple(identity_of(model)) for model in found.rendered.models}


def test_what_is_new_is_served_as_the_spec_says() -> None:
    found = decided([model("a", "chat"), model("b")], MultiModelStatus())
    assert ids(found) == {"a": "chat", "b": "org/b"}
    assert found.default == "chat"


# An alias moves from a to b.
MOVED = [model("a"), model("b", "chat")]
WAS = before(a="chat", b="org/b")
A, B_AS_BEFORE = pod("a", "chat"), pod("b")


def test_an_alias_stays_until_the_new_model_can_answer_by_it() -> None:
    for pods in ([A, B_AS_BEFORE], [A], [A, pod("b", "chat", ready=False)]):
        found = decided(MOVED, WAS, *pods)
        assert ids(found) == {"a": "chat", "b": "org/b"}
        assert rendered(found) == {"a": ("chat", "org/a"), "b": ("chat", "org/b")}, "a is not restarted for nothing"
        assert found.default == "chat"


def test_an_alias_moves_when_the_new_model_can_answer() -> None:
    found = decided(MOVED, WAS, A, pod("b", "chat"))
    assert ids(found) == {"a": "org/a", "b": "chat"}
    assert rendered(found) == {"a": ("org/a", "org/a"), "b": ("chat", "org/b")}


def test_an_alias_moves_at_once_where_the_old_model_does_not_answer_anyway() -> None:
    assert ids(decided(MOVED, WAS)) == {"a": "org/a", "b": "chat"}


def test_an_alias_moves_at_once_to_an_unloaded_model_which_a_request_then_loads() -> None:
    assert ids(decided(MOVED, WAS, A, unloaded=("b",))) == {"a": "org/a", "b": "chat"}


def test_taking_an_alias_back_is_one_edit() -> None:
    assert ids(decided([model("a", "chat"), model("b")], WAS, A, pod("b", "chat", ready=False))) == {
        "a": "chat",
        "b": "org/b",
    }


def test_a_new_model_gets_its_alias_when_it_is_warm() -> None:
    models, was = [model("a"), model("n", "chat")], before(a="chat")
    assert ids(decided(models, was, A, pod("n", "chat", ready=False))) == {"a": "chat", "n": "org/n"}
    assert ids(decided(models, was, A, pod("n", "chat"))) == {"a": "org/a", "n": "chat"}


def test_a_model_that_left_serves_until_its_successor_is_warm() -> None:
    models = [model("n", "chat")]
    waiting = decided(models, before(a="chat"), A, pod("n", "chat", ready=False))
    assert (ids(waiting), waiting.retiring_names, waiting.default) == ({"n": "org/n"}, {"a"}, "chat")
    done = decided(models, before(a="chat", n="org/n"), A, pod("n", "chat"))
    assert (ids(done), done.retiring_names, done.default) == ({"n": "chat"}, set(), "chat")
    dead = decided(models, before(a="chat"), pod("n", "chat", ready=False))
    assert (ids(dead), dead.retiring_names) == ({"n": "chat"}, set())


def test_a_model_that_left_without_a_successor_is_gone() -> None:
    found = decided([model("n")], before(a="chat", n="org/n"), A, pod("n"))
    assert (found.retiring_names, found.default) == (set(), "org/n")


def test_aliases_that_change_places_move_together() -> None:
    swapped, was = [model("a", "two"), model("b", "one")], before(a="one", b="two")
    loading = decided(swapped, was, pod("a", "one"), pod("b", "two"))
    assert ids(loading) == {"a": "one", "b": "two"}
    assert rendered(loading) == {"a": ("two", "org/a"), "b": ("one", "org/b")}, "else neither could ever load"
    for pods in ([pod("a", "two"), pod("b", "two")], [pod("a", "one"), pod("b", "one")]):
        assert ids(decided(swapped, was, *pods)) == {"a": "two", "b": "one"}


def test_a_chain_of_aliases_moves_from_its_end() -> None:
    models, was = [model("a"), model("b", "one"), model("c", "two")], before(a="one", b="two", c="org/c")
    first = decided(models, was, pod("a", "one"), pod("b", "two"), pod("c"))
    assert ids(first) == {"a": "one", "b": "two", "c": "org/c"}
    second = decided(models, was, pod("a", "one"), pod("b", "two"), pod("c", "two"))
    assert ids(second)["c"] == "two"
    assert len(set(ids(second).values())) == 3


@pytest.mark.parametrize(
    ("new", "old", "served"),
    [(0, 1, "org/a"), (1, 1, "org/a2"), (1, 2, "org/a"), (2, 2, "org/a2"), (1, 0, "org/a2"), (0, 0, "org/a2")],
)
def test_another_source_is_served_when_as_many_replicas_have_it(new: int, old: int, served: str) -> None:
    pods = [pod("a", "chat", "org/a2")] * new + [pod("a", "chat")] * old
    found = decided([model("a", "chat", "org/a2")], before(a="chat"), *pods)
    assert found.identities["a"] == ("chat", served)
    assert rendered(found) == {"a": ("chat", "org/a2")}, "the new source has to be loaded for it"


def test_the_default_waits_for_its_model() -> None:
    spec = MultiModelSpec.model_validate({"models": [model("a"), model("b")], "defaultModel": "org/b"})
    was = before(a="org/a", b="org/b")
    deployments = tuple(
        {"kind": "Deployment", "metadata": {"name": f"mm-model-{n}"}, "spec": {"replicas": 1}} for n in "ab"
    )
    for pods, default in (((pod("a"),), "org/a"), ((pod("a"), pod("b")), "org/b"), ((), "org/b")):
        found = serving.decide(spec, was, Observed({"metadata": {"name": "mm"}}, deployments, pods))
        assert found.default == default


def test_a_pod_tells_what_it_serves_by_its_arguments() -> None:
    assert serving.served_by(pod("a", "$$x/y=z")) == ("$x/y=z", "org/a")
    assert serving.served_by({"spec": {}}) is None


ALIASES = st.sampled_from([None, "one", "two", "three"])


@st.composite
def specs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Models of a, b, c and d with aliases that differ."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
    given = draw(st.lists(ALIASES, min_size=len(names), max_size=len(names), unique_by=lambda alias: alias or object()))
    return [model(name, alias) for name, alias in zip(names, given, strict=True)]


def shown(found: Serving) -> MultiModelStatus:
    """Return the status that a decision becomes."""
    models = [
        {"name": name, "id": identity.id, "canonicalId": identity.canonical_id, "state": "loaded"}
        for name, identity in found.identities.items()
    ]
    models += [left.model_dump(by_alias=True) for left in found.retiring]
    return MultiModelStatus.model_validate({"models": models, "defaultModel": found.default})


def loaded(found: Serving) -> list[dict[str, Any]]:
    """Return pods that have loaded all that was rendered, and those of the models that retire."""
    pods = [pod(name, None if i.id == i.canonical_id else i.id) for name, i in rendered_identities(found).items()]
    return pods + [pod(left.name, left.id) for left in found.retiring]


def rendered_identities(found: Serving) -> dict[str, Identity]:
    return {of.name: identity_of(of) for of in found.rendered.models}


@given(specs(), specs(), st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
@settings(max_examples=200, deadline=None)
def test_whatever_moves_no_id_is_served_twice_and_all_comes_to_rest(
    first: list[dict[str, Any]], second: list[dict[str, Any]], ready: set[str], unloaded: set[str]
) -> None:
    start = decided(first, MultiModelStatus())
    was = [found for found in loaded(start) if found["metadata"]["labels"]["multimodel.dev/model"] in ready]
    found = decided(second, shown(start), *was, unloaded=tuple(unloaded))
    for _ in range(len(second) + 1):
        served = [identity.id for identity in found.identities.values()] + [left.id for left in found.retiring]
        assert len(set(served)) == len(served)
        assert found.default in served
        found = decided(second, shown(found), *loaded(found))
    assert rendered_identities(found) == found.identities == {of["name"]: wanted(of) for of in second}
    assert not found.retiring


def wanted(of: dict[str, Any]) -> Identity:
    return identity_of(Model.model_validate(of))
