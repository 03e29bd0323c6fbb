"""Text as it comes equals text decoded at once."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from multimodel_server.text.detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    TokenBytes,
    WindowDetokenizer,
    is_byte_level,
)

VOCABULARY = 300


def byte_level() -> Tokenizer:
    """Every byte is a token, some tokens hold several, and added tokens hold anything."""
    alphabet = [*map(chr, range(0x21, 0x7F)), *map(chr, range(0xA1, 0xAD)), *map(chr, range(0xAE, 0x100))]
    alphabet += [chr(0x100 + place) for place in range(256 - len(alphabet))]
    longer = ["Ġhello", "ä½łå¥½", "ä½", "łå", "ðŁ", "ðŁİī"]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate([*alphabet, *longer])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("a b €", special=False), AddedToken("<tool>", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A tokenizer in the manner of Llama 2."""
    words = ["▁", "▁a", "b", "▁word", "é", "你", "<unk>", "�"]
    tokens = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({token: place for place, token in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
TOKEN_BYTES = TokenBytes(BYTE_LEVEL)

token_ids = st.lists(st.lists(st.integers(0, VOCABULARY), max_size=4), max_size=40)
text_bytes = st.text(max_size=30).map(lambda text: [[BYTE_FALLBACK.token_to_id(f"<0x{b:02X}>")] for b in text.encode()])


def pieces_of(detokenizer: Detokenizer, chunks: list[list[int]]) -> list[str]:
    return [*(detokenizer.feed(chunk) for chunk in chunks), detokenizer.flush()]


def at_once(tokenizer: Tokenizer, chunks: list[list[int]]) -> str:
    return tokenizer.decode([token_id for chunk in chunks for token_id in chunk], skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(token_ids)
def test_byte_level_pieces_equal_one_decoding(chunks: list[list[int]]) -> None:
    assert "".join(pieces_of(ByteLevelDetokenizer(TOKEN_BYTES), chunks)) == at_once(BYTE_LEVEL, chunks)


@settings(max_examples=300, deadline=None)
@given(token_ids | text_bytes)
def test_byte_fallback_pieces_equal_one_decoding(chunks: list[list[int]]) -> None:
    assert "".join(pieces_of(WindowDetokenizer(BYTE_FALLBACK), chunks)) == at_once(BYTE_FALLBACK, chunks)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_no_half_character_is_sent(text: str) -> None:
    ids = [[BYTE_LEVEL.token_to_id(character)] for character in _spelled(text.encode())]
    for piece in pieces_of(ByteLevelDetokenizer(TOKEN_BYTES), ids):
        assert "\ufffd" not in piece or "\ufffd" in text


def _spelled(data: bytes) -> str:
    alphabet = {}
    for token_id in range(256):
        alphabet[TOKEN_BYTES.of(token_id)[0]] = BYTE_LEVEL.id_to_token(token_id)
    return "".join(alphabet[byte] for byte in data)


def test_a_character_comes_with_its_last_byte() -> None:
    detokenizer = ByteLevelDetokenizer(TOKEN_BYTES)
    ids = [BYTE_LEVEL.token_to_id(token) for token in ("ä½", "ł", "å", "¥", "½")]
    assert [detokenizer.feed([token_id]) for token_id in ids] == ["", "你", "", "", "好"]


def test_an_unfinished_character_is_flushed() -> None:
    detokenizer = ByteLevelDetokenizer(TOKEN_BYTES)
    assert detokenizer.feed([BYTE_LEVEL.token_to_id("ðŁ")]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_the_byte_alphabet_is_that_of_the_library() -> None:
    assert sorted(TOKEN_BYTES.of(token_id) for token_id in range(256)) == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("token_id", [10_000, BYTE_LEVEL.token_to_id("</s>")])
def test_special_and_unknown_tokens_are_silent(token_id: int) -> None:
    assert pieces_of(ByteLevelDetokenizer(TOKEN_BYTES), [[token_id]]) == ["", ""]


def test_a_decoder_is_recognised_by_its_kind() -> None:
    assert is_byte_level(BYTE_LEVEL)
    assert not is_byte_level(BYTE_FALLBACK)
    assert json.loads(BYTE_FALLBACK.to_str())["decoder"]["type"] == "Sequence"


class CountingTokenizer:
    """Counts the tokens that are decoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoded = 0

    def decode(self, ids: list[int], **options: bool) -> str:
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("token", ["<0xE2>", "�", "b"])
def test_the_work_grows_with_the_text_and_not_faster(token: str) -> None:
    counting = CountingTokenizer(BYTE_FALLBACK)
    ids = [BYTE_FALLBACK.token_to_id(token)] * 2000
    text = "".join(pieces_of(WindowDetokenizer(counting), [[token_id] for token_id in ids]))
    assert text == BYTE_FALLBACK.decode(ids)
    assert counting.decoded < 40 * len(ids)
