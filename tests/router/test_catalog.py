"""Which model an id means."""

import pytest

from multimodel_api.errors import ApiError
from multimodel_api.manifest import MultiModelSpec
from multimodel_router.catalog import Catalog

SPEC = {
    "defaultModel": "two",
    "models": [
        {"name": "a", "plain": {"modelId": "org/alone"}},
        {"name": "b", "alias": "two", "plain": {"modelId": "org/aliased"}},
        {"name": "c", "alias": "first", "plain": {"modelId": "org/shared"}},
        {"name": "d", "alias": "second", "plain": {"modelId": "org/shared"}},
        {
            "name": "e",
            "alias": "small.q4",
            "gguf": {"tokModelId": "org/tok", "quantizedModelId": "org/gguf", "quantizedFilename": "q4.gguf"},
        },
    ],
}


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(MultiModelSpec.model_validate(SPEC))


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("org/alone", "a"),
        ("two", "b"),
        ("org/aliased", "b"),
        ("first", "c"),
        ("second", "d"),
        ("org/gguf", "e"),
        ("default", "b"),
        (None, "b"),
        ("a", None),
        ("org/shared", None),
        ("org/tok", None),
        ("TWO", None),
        ("", None),
    ],
)
def test_ids(catalog: Catalog, model_id: str | None, name: str | None) -> None:
    found = catalog.find(model_id)
    assert (found and found.name) == name


def test_an_api_id_wins_over_a_canonical_id() -> None:
    models = [
        {"name": "a", "alias": "one", "plain": {"modelId": "org/x"}},
        {"name": "b", "plain": {"modelId": "org/x"}},
    ]
    found = Catalog(MultiModelSpec.model_validate({"models": models})).find("org/x")
    assert found is not None
    assert found.name == "b"


def test_an_unknown_id_is_refused_with_the_known_ones(catalog: Catalog) -> None:
    with pytest.raises(ApiError, match=r"'gpt' does not exist. Known models: 'org/alone', 'two', 'first'") as caught:
        catalog.resolve("gpt")
    assert caught.value.status == 404


def test_an_empty_catalog_knows_nothing_not_even_a_default() -> None:
    catalog = Catalog()
    assert (catalog.models, catalog.find("default"), catalog.find(None)) == ((), None, None)
    with pytest.raises(ApiError):
        catalog.resolve(None)
