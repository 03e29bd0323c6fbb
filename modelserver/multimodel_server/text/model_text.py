"""Everything that the HTTP process knows of a model's text, read once when the server starts."""

from dataclasses import dataclass
from pathlib import Path

from multimodel_server.text.sampling import GenerationDefaults, read_defaults
from multimodel_server.text.template import ChatTemplate, find_template
from multimodel_server.text.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class ModelText:
    """A model's tokenizer, chat template and sampling defaults."""

    tokenizer: TextTokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer: generation_config.json's, and the tokenizer's end token."""
        eos = self.tokenizer.eos_id
        return self.defaults.eos_ids | ({eos} if eos is not None else set())


def load_text(model_dir: Path, *, chat_template: str | None, jinja_explicit: Path | None) -> ModelText:
    """Read what the model's folder says of text; raises `LoadError`."""
    tokenizer = TextTokenizer.load(model_dir)
    template = find_template(model_dir, tokenizer.settings, chat_template=chat_template, jinja_explicit=jinja_explicit)
    return ModelText(tokenizer=tokenizer, template=template, defaults=read_defaults(model_dir))
