"""The manifest types: identity of models, inheritance of engine settings, clear refusals."""

from typing import Any

import pytest
from pydantic import ValidationError

from multimodel_api.manifest import EngineSettings, MultiModelSpec


def spec(*models: dict[str, Any], **fields: Any) -> MultiModelSpec:
    return MultiModelSpec.model_validate({"models": list(models), **fields})


def model(name: str, model_id: str = "org/a", **fields: Any) -> dict[str, Any]:
    return {"name": name, "plain": {"modelId": model_id}, **fields}


def test_api_id_is_the_alias_or_else_the_model_id() -> None:
    aliased, plain = spec(model("a", "org/a", alias="first"), model("b", "org/b")).models
    assert (aliased.api_id, aliased.canonical_id) == ("first", "org/a")
    assert (plain.api_id, plain.canonical_id) == ("org/b", "org/b")


def test_gguf_models_are_named_after_the_quantised_repository() -> None:
    gguf = {"tokModelId": "org/base", "quantizedModelId": "org/base-GGUF", "quantizedFilename": "q4.gguf"}
    (only,) = spec({"name": "g", "gguf": gguf}).models
    assert only.canonical_id == "org/base-GGUF"
    assert only.kind == "gguf"
    assert not only.loadable


@pytest.mark.parametrize(("default_model", "expected"), [(None, "a"), ("org/b", "b"), ("second", "b"), ("org/a", "a")])
def test_default_is_the_named_model_or_else_the_first(default_model: str | None, expected: str) -> None:
    fields = {} if default_model is None else {"defaultModel": default_model}
    assert spec(model("a"), model("b", "org/b", alias="second"), **fields).default.name == expected


def test_default_prefers_an_api_id_to_a_model_id_that_an_alias_hides() -> None:
    hidden = model("hidden", "org/a", alias="quantised")
    assert spec(hidden, model("open", "org/a"), defaultModel="org/a").default.name == "open"


def test_engine_settings_of_a_model_win_over_those_of_the_spec() -> None:
    both = spec(model("a", engine={"maxSeqs": 4}), model("b", "org/b"), engine={"maxSeqs": 8, "dtype": "f32"})
    first, second = both.models
    assert both.engine_of(first) == EngineSettings(max_seqs=4, dtype="f32")
    assert both.engine_of(second) == EngineSettings(max_seqs=8, dtype="f32")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"models": []}, "models"),
        ({"models": [model("A")]}, "models.0.name"),
        ({"models": [model("a", replicas=3)]}, "models.0.replicas"),
        ({"models": [model("a", engine={"maxSeqs": 0})]}, "models.0.engine.maxSeqs"),
        (
            {"models": [model("a", engine={"pagedAttention": {"blockSize": 12}})]},
            "models.0.engine.pagedAttention.blockSize",
        ),
        ({"models": [model("a")], "router": {"replicas": 0}}, "router.replicas"),
    ],
)
def test_a_wrong_field_is_named(document: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        MultiModelSpec.model_validate(document)
    assert field in {".".join(str(part) for part in error["loc"]) for error in refused.value.errors()}
