"""The spec as its models are served, by what the status says."""

from typing import Any

from multimodel_api.manifest import MultiModelSpec
from multimodel_api.served import Identity, as_served, identity_of
from multimodel_api.status import MultiModelStatus


def spec(*models: dict[str, Any], **more: Any) -> MultiModelSpec:
    return MultiModelSpec.model_validate({"models": list(models), **more})


def status(*models: tuple[str, str, str], default: str | None = None) -> MultiModelStatus:
    shown = [{"name": name, "id": id_, "canonicalId": of, "state": "loaded"} for name, id_, of in models]
    return MultiModelStatus.model_validate({"models": shown, "defaultModel": default})


NEW = {"name": "new", "alias": "chat", "plain": {"modelId": "org/new"}}
OLD = {"name": "old", "plain": {"modelId": "org/old"}}


def identities(served: MultiModelSpec) -> dict[str, Identity]:
    return {model.name: identity_of(model) for model in served.models}


def test_without_a_status_the_spec_counts() -> None:
    assert as_served(spec(NEW, OLD), MultiModelStatus()) == spec(NEW, OLD, defaultModel="chat")


def test_an_id_stays_where_the_status_says_it_is() -> None:
    served = as_served(
        spec(NEW, OLD), status(("new", "org/new", "org/new"), ("old", "chat", "org/old"), default="chat")
    )
    assert identities(served) == {"new": ("org/new", "org/new"), "old": ("chat", "org/old")}
    assert served.default.name == "old"


def test_another_source_is_served_when_the_status_says_so() -> None:
    changed = spec({"name": "a", "alias": "chat", "plain": {"modelId": "org/v2", "revision": "main"}})
    before = as_served(changed, status(("a", "chat", "org/v1")))
    assert identities(before) == {"a": ("chat", "org/v1")}
    assert as_served(changed, status(("a", "chat", "org/v2"), default="chat")) == changed.model_copy(
        update={"default_model": "chat"}
    )


def test_a_gguf_source_keeps_its_file() -> None:
    gguf = {"quantizedModelId": "org/v2", "quantizedFilename": "q4.gguf"}
    served = as_served(spec({"name": "g", "gguf": gguf}), status(("g", "org/v1", "org/v1")))
    (model,) = served.models
    assert (model.canonical_id, model.gguf and model.gguf.quantized_filename) == ("org/v1", "q4.gguf")


def test_a_model_that_has_left_serves_for_as_long_as_the_status_shows_it() -> None:
    served = as_served(spec(NEW), status(("new", "org/new", "org/new"), ("old", "chat", "org/old"), default="chat"))
    assert identities(served) == {"new": ("org/new", "org/new"), "old": ("chat", "org/old")}
    assert served.default.name == "old"
    assert identities(as_served(spec(NEW), status(("new", "chat", "org/new")))) == {"new": ("chat", "org/new")}


def test_a_default_that_nobody_serves_is_that_of_the_spec() -> None:
    served = as_served(spec(OLD, NEW, defaultModel="chat"), status(default="gone"))
    assert served.default.name == "new"
