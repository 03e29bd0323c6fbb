"""The model's tokenizer and the special tokens that templates and endings need."""

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
        self.bos_id = self._id_of(settings.bos_token)
        self.eos_id = self._id_of(settings.eos_token)
        self._token_bytes = TokenBytes(tokenizer) if is_byte_level(tokenizer) else None

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
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=True).ids
        has_two = self.bos_id is not None and ids[:2] == [self.bos_id, self.bos_id]
        return ids[1:] if has_two else ids

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of a rendered chat template, which wrote all special tokens itself."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def detokenizer(self) -> Detokenizer:
        """Return a detokeniser for one answer."""
        if self._token_bytes is not None:
            return ByteLevelDetokenizer(self._token_bytes)
        return WindowDetokenizer(self._tokenizer)

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)
