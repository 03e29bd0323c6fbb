"""The two byte-level BPE tokenizers, trained on the made dialogues, with the chat templates that go with them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

HEADER_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

WORDS_DIGITS_SIGNS = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+ ?|\s+"
"""Words with the space before them, digits one by one, signs with the spaces around them."""


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation is written: the special tokens and the template that places them."""

    template: str
    special_tokens: tuple[str, ...]
    end_of_turn: str
    end_of_text: str
    beginning_of_text: str | None = None


CHATML = ChatFormat(
    template=CHATML_TEMPLATE,
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    end_of_turn="<|im_end|>",
    end_of_text="<|endoftext|>",
)
HEADERS = ChatFormat(
    template=HEADER_TEMPLATE,
    special_tokens=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    end_of_turn="<|eot_id|>",
    end_of_text="<|end_of_text|>",
    beginning_of_text="<|begin_of_text|>",
)


def whole_words_else_letters(words: Sequence[str]) -> str:
    """The pattern that keeps the given words whole and cuts everything else, quoted words too, into characters.

    A model can only spell what it sees letter by letter, but the words questions are made of need no spelling. A letter
    behind a dash is one token: then a spelled word is as long as the word, and each letter stands where its own did.
    """
    longest_first = sorted(words, key=len, reverse=True)
    return rf"(?: |(?<![\p{{L}}'\"]))(?:{'|'.join(map(re.escape, longest_first))})(?!\p{{L}})|\n+|, |-\p{{L}}|[^\n]"


def train_tokenizer(pattern: str, chat: ChatFormat, texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens whose merges never cross what `pattern` separates."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(chat.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if chat.beginning_of_text is not None:
        begin = chat.beginning_of_text
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=chat.beginning_of_text,
        eos_token=chat.end_of_turn,
        pad_token=chat.end_of_text,
        chat_template=chat.template,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=2048,
    )
