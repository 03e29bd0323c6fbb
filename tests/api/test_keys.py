"""API keys: random, kept as digests alone, with entries that say what they allow."""

import hashlib

import pytest
from pydantic import ValidationError

from multimodel_api.keys import KEY_PREFIX, Action, KeyEntry, key_digest, key_hash, new_key


def test_a_key_has_256_random_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {key[: len(KEY_PREFIX)] for key in keys} == {"sk-mm-"}
    assert {len(key) - len(KEY_PREFIX) for key in keys} == {43}, "characters of 6 bits"


def test_an_entry_knows_a_key_by_its_sha256() -> None:
    entry = KeyEntry(hash=key_hash("sk-mm-a"), models=["*"], actions=[Action.INFER])
    assert entry.hash == f"sha256:{hashlib.sha256(b'sk-mm-a').hexdigest()}"
    assert entry.digest == key_digest(b"sk-mm-a") == hashlib.sha256(b"sk-mm-a").digest()


@pytest.mark.parametrize(("models", "covered"), [(["*"], True), (["math"], True), (["words"], False)])
def test_an_entry_covers_its_models(models: list[str], covered: bool) -> None:
    assert KeyEntry(hash=key_hash("k"), models=models, actions=[Action.INFER]).covers("math") is covered


@pytest.mark.parametrize("wrong", [{"hash": "sha256:"}, {"hash": "k"}, {"models": []}, {"actions": []}, {"key": "k"}])
def test_an_entry_says_everything_and_nothing_else(wrong: dict[str, object]) -> None:
    good = {"hash": key_hash("k"), "models": ["*"], "actions": ["infer"]}
    assert KeyEntry.model_validate(good)
    with pytest.raises(ValidationError):
        KeyEntry.model_validate(good | wrong)
