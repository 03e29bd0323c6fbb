"""The two models: what each learns, how it is built and how long it practises."""

from collections.abc import Callable
from dataclasses import dataclass

from training import abacus, scribe
from training.dialogues import Curriculum
from training.tokenization import CHATML, HEADERS, WORDS_DIGITS_SIGNS, ChatFormat, whole_words_else_letters
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Model = Qwen3ForCausalLM | LlamaForCausalLM


@dataclass(frozen=True)
class Recipe:
    """All that makes one model, so that the same recipe gives the same model."""

    name: str
    curriculum: Curriculum
    chat: ChatFormat
    pattern: str
    vocabulary: int
    configuration: Callable[..., PretrainedConfig]
    architecture: Callable[[PretrainedConfig], Model]
    shape: dict[str, object]
    steps: int
    tokens_per_step: int = 2048
    single_questions: float = 0.5
    """The part of the training, from its start, without longer conversations."""
    matrix_learning_rate: float = 0.02
    learning_rate: float = 4e-3
    seed: int = 1

    def config(self, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
        """The model's configuration, with the ids of the tokenizer's special tokens."""
        return self.configuration(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=2048,
            initializer_range=0.06,
            attention_dropout=0.0,
            use_cache=True,
            **self.shape,
        )


SIZES = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
}
ABACUS = Recipe(
    name="abacus",
    curriculum=abacus.CURRICULUM,
    chat=CHATML,
    pattern=WORDS_DIGITS_SIGNS,
    vocabulary=640,
    configuration=Qwen3Config,
    architecture=Qwen3ForCausalLM,
    shape={**SIZES, "tie_word_embeddings": True},
    steps=800,
)
SCRIBE = Recipe(
    name="scribe",
    curriculum=scribe.CURRICULUM,
    chat=HEADERS,
    pattern=whole_words_else_letters(scribe.PROMPT_WORDS),
    vocabulary=1024,
    configuration=LlamaConfig,
    architecture=LlamaForCausalLM,
    shape={
        **SIZES,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    steps=900,
)
RECIPES = {recipe.name: recipe for recipe in (ABACUS, SCRIBE)}
