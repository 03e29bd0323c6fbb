"""The model's tokenizer and the special tokens that templates and endings need."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator
from tokenizers import Tokenizer

from multimodel_server.text.detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    TokenBytes,
    WindowDetokenizer,
    is_byte_level,
    sentencepiece_bytes,
    special_ids,
)
from multimodel_server.text.files import bad_configuration, read_document


def _token_text(value: Any) -> Any:
    """Tokens are written as text, or as an object that holds it."""
    return value.get("content") if isinstance(value, dict) else value


SpecialToken = Annotated[str | None, BeforeValidator(_token_text)]


class NamedTemplate(BaseModel):
    """One of several chat templates."""

    name: str
    template: str


class TokenizerSettings(BaseModel):
    """What is read of `tokenizer_config.json`."""

    bos_token: SpecialToken = None
    eos_token: SpecialToken = None
    pad_token: SpecialToken = None
    unk_token: SpecialToken = None
    chat_template: str | list[NamedTemplate] | None = None

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that are set, under the names that templates know."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: token for name in names if (token := getattr(self, name)) is not None}


class TextTokenizer:
    """Encodes prompts and makes detokenisers; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, settings: TokenizerSettings) -> None:
        self._tokenizer = tokenizer
        self.settings = settings
        self.bos_id = self.id_of(settings.bos_token or "")
        self.eos_id = self.id_of(settings.eos_token or "")
        self._token_bytes = TokenBytes(tokenizer) if is_byte_level(tokenizer) else None
        self._special_ids = special_ids(tokenizer)
        self._added_ids = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        self.vocabulary_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def load(cls, model_dir: Path) -> "TextTokenizer":
        """Read `tokenizer.json` and `tokenizer_config.json`; raises `LoadError`."""
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise bad_configuration(f"{path} is missing; the model needs its tokenizer in the tokenizers format.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # The Rust library raises plain `Exception`.
            raise bad_configuration(f"{path} is no valid tokenizer: {error}.") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, read_document(model_dir / "tokenizer_config.json", TokenizerSettings))

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of plain text, with the special tokens that the model expects around it, each once."""
        ids = self._encode(text, add_special_tokens=True)
        has_two = self.bos_id is not None and ids[:2] == [self.bos_id, self.bos_id]
        return ids[1:] if has_two else ids

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of a rendered chat template, which wrote all special tokens itself."""
        return self._encode(text, add_special_tokens=False)

    def decode(self, token_ids: list[int], *, special: bool = True) -> str:
        """Return the text of token ids, with or without the names of special tokens."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=not special)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one token stands for in a text; of special tokens the name."""
        if self._token_bytes is not None:
            return self._token_bytes.named(token_id)
        return sentencepiece_bytes(self._tokenizer.id_to_token(token_id) or "")

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its name."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def name_of(self, token_id: int) -> str:
        """Return a token's name in the vocabulary."""
        name: str | None = self._tokenizer.id_to_token(token_id)
        return name or ""

    def added_id(self, token: str) -> int | None:
        """Return the id of a token that was added to the vocabulary, special or not; None if there is no such token."""
        return self._added_ids.get(token)

    def special_among(self, tokens: Iterable[str]) -> frozenset[int]:
        """Return the ids of those tokens that are special."""
        ids = {self._added_ids[token] for token in tokens if token in self._added_ids}
        return frozenset(ids & self._special_ids)

    def detokenizer(self, visible: frozenset[int] = frozenset()) -> Detokenizer:
        """Return a detokeniser for one answer; of the special tokens it writes the `visible` ones."""
        if self._token_bytes is not None:
            return ByteLevelDetokenizer(self._token_bytes, visible)
        return WindowDetokenizer(self._tokenizer, visible)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Unlike `encode`, the batch methods leave Python's lock to other threads.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids
