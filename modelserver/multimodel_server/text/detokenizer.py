"""Text from token ids as they come, such that the pieces joined are what decoding all ids at once gives."""

import codecs
from typing import Protocol

from tokenizers import Tokenizer, decoders

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WINDOW_TOKENS = 8
"""Tokens of context; a character has at most four bytes, so it is never spread over more."""


class Detokenizer(Protocol):
    """Decodes one answer; special tokens are no part of its text, but for those made `visible`."""

    def feed(self, token_ids: list[int]) -> str:
        """Return the text that these tokens complete."""

    def flush(self) -> str:
        """Return what is left at the end of the answer."""


class TokenBytes:
    """The bytes that each token of a byte-level tokenizer stands for; made once, used by every answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._known: dict[int, bytes] = {}

    def of(self, token_id: int) -> bytes:
        """Return the token's bytes; special and unknown tokens have none."""
        return b"" if token_id in self._special else self.named(token_id)

    def named(self, token_id: int) -> bytes:
        """Return the token's bytes, those of a special token's name too; unknown tokens have none."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spelled(token_id)
        return known

    def _spelled(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        spelled = [_BYTE_OF.get(character) for character in token]
        # An added token may hold characters outside the byte alphabet: then it is text, not spelled bytes.
        return token.encode() if None in spelled else bytes(byte for byte in spelled if byte is not None)


class ByteLevelDetokenizer:
    """For byte-level BPE (Qwen, Llama 3, GPT-2): exact and linear, since the tokens' bytes only need joining."""

    def __init__(self, token_bytes: TokenBytes, visible: frozenset[int] = frozenset()) -> None:
        self._token_bytes = token_bytes
        self._visible = visible
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_ids: list[int]) -> str:
        """Return the text that these tokens complete."""
        return self._utf8.decode(b"".join(map(self._bytes_of, token_ids)))

    def _bytes_of(self, token_id: int) -> bytes:
        return self._token_bytes.named(token_id) if token_id in self._visible else self._token_bytes.of(token_id)

    def flush(self) -> str:
        """Return what is left at the end of the answer."""
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For every other tokenizer: decode a short window of tokens again and give out what it adds.

    Tokens are held while they may still change with the next one: half a character, or a run of byte tokens (`<0xE2>`),
    which decoders read as a whole. A few tokens of context stay in the window, so that spaces between words are kept.
    """

    def __init__(self, tokenizer: Tokenizer, visible: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer) - visible
        self._context: list[int] = []
        self._pending: list[int] = []

    def feed(self, token_ids: list[int]) -> str:
        """Return the text that these tokens complete."""
        text = ""
        for token_id in token_ids:
            token = self._tokenizer.id_to_token(token_id)
            if token is None or token_id in self._special:
                continue
            self._pending.append(token_id)
            if not self._may_change(token):
                text += self._take()
        return text

    def flush(self) -> str:
        """Return what is left at the end of the answer."""
        return self._take() if self._pending else ""

    def _may_change(self, token: str) -> bool:
        if _is_byte_token(token):
            return True
        tail = self._decode(self._pending[-_WINDOW_TOKENS:])
        return not tail or tail.endswith(_REPLACEMENT)

    def _take(self) -> str:
        before = self._decode(self._context)
        text = self._decode(self._context + self._pending)[len(before) :]
        self._context, self._pending = [*self._context, *self._pending][-_WINDOW_TOKENS:], []
        return text

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text


def _is_byte_token(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def sentencepiece_bytes(token: str) -> bytes:
    """Return what a token of a tokenizer in SentencePiece's manner stands for."""
    return bytes([int(token[3:5], 16)]) if _is_byte_token(token) else token.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of the byte-level alphabet.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for the characters from U+0100 on
    (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Return the tokens that are never part of the text."""
    return {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Say whether the tokenizer's tokens are spelled in the byte-level alphabet."""
    return isinstance(tokenizer.decoder, decoders.ByteLevel)
