"""The grammars that force a call accept exactly the calls that the readers read, also after reasoning."""

import json
from typing import Any

import llguidance
import llguidance.hf
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from multimodel_api.chat import Tool
from multimodel_server.engine.messages import Grammar
from multimodel_server.text.grammar import after_thought
from multimodel_server.text.parts import gathered
from multimodel_server.text.reasoning import ReasoningReader
from multimodel_server.text.reply import ReplyReader
from multimodel_server.text.tokenizer import TextTokenizer, TokenizerSettings
from multimodel_server.text.tool_calls import ToolCallReader
from multimodel_server.text.tool_formats import HERMES, LLAMA, MISTRAL, ToolFormat, call_grammar, markers, tool_format

TOOLS = [
    Tool.model_validate(
        {
            "type": "function",
            "function": {
                "name": "add",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"$ref": "#/$defs/number"}, "b": {"type": "string"}},
                    "required": ["a"],
                    "additionalProperties": False,
                    "$defs": {"number": {"type": "integer"}},
                },
            },
        }
    ),
    Tool.model_validate({"type": "function", "function": {"name": "now"}}),
]
ADD, NOW = '{"name": "add", "KEY": {"a": 3, "b": "x\\"y"}}', '{"name": "now", "KEY": {}}'


def make_tokenizer(special: bool) -> TextTokenizer:
    """Bytes as tokens, and the formats' markers as tokens, special or not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    names = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<think>", "</think>"]
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    return TextTokenizer(tokenizer, TokenizerSettings(eos_token="</s>"))


TOKENIZERS = {special: make_tokenizer(special) for special in (False, True)}


def accepts(grammar: Grammar, tokenizer: TextTokenizer, text: str) -> bool:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="</s>")
    compiled = {"lark": llguidance.LLMatcher.grammar_from_lark}[grammar.kind](grammar.text)
    matcher = llguidance.LLMatcher(llguidance.hf.from_tokenizer(fast), compiled)
    assert not matcher.get_error()
    ids = tokenizer.encode_rendered(text)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def written(known: ToolFormat, *calls: str) -> str:
    calls = tuple(call.replace("KEY", known.arguments) for call in calls)
    if known is MISTRAL:
        return f"[TOOL_CALLS][{', '.join(calls)}]"
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls) if known is HERMES else calls[0]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("known", [HERMES, LLAMA, MISTRAL])
def test_what_the_grammar_accepts_the_reader_reads(known: ToolFormat, thinks: bool, special: bool) -> None:
    tokenizer = TOKENIZERS[special]
    grammar = call_grammar(known, TOOLS, tokenizer, several=True, thinks=thinks)
    calls = [ADD] if known is LLAMA else [ADD, NOW]
    text = ("I add\nthem.</think>\n\n" if thinks else "") + written(known, *calls)
    assert accepts(grammar, tokenizer, text)
    visible = tokenizer.special_among([*markers(known), "<think>", "</think>"])
    detokenizer = tokenizer.detokenizer(visible)
    reader = ReplyReader(
        [],
        reasoning=ReasoningReader(begun=True) if thinks else None,
        tools=ToolCallReader(known, ["add", "now"], "answer"),
    )
    parts = [part for token in tokenizer.encode_rendered(text) for part in reader.feed(detokenizer.feed([token]))]
    reply = gathered(parts + reader.flush())
    assert reply.reasoning == ("I add\nthem." if thinks else "")
    assert reply.content == ""
    assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == [
        ("add", {"a": 3, "b": 'x"y'}),
        ("now", {}),
    ][: len(calls)]


@pytest.mark.parametrize("known", [HERMES, LLAMA, MISTRAL])
@pytest.mark.parametrize(
    "wrong",
    [
        '{"name": "sub", "KEY": {"a": 3}}',
        '{"name": "add", "KEY": {"a": "3"}}',
        '{"name": "add", "KEY": {}}',
        '{"name": "now", "KEY": {"a": 1}}',
    ],
)
def test_the_grammar_accepts_nothing_else(known: ToolFormat, wrong: str) -> None:
    tokenizer = TOKENIZERS[True]
    grammar = call_grammar(known, TOOLS, tokenizer, several=True, thinks=False)
    assert not accepts(grammar, tokenizer, written(known, wrong))
    assert not accepts(grammar, tokenizer, "Hello.")


@pytest.mark.parametrize("known", [HERMES, MISTRAL])
def test_one_call_is_one_call(known: ToolFormat) -> None:
    tokenizer = TOKENIZERS[False]
    grammar = call_grammar(known, TOOLS, tokenizer, several=False, thinks=False)
    assert accepts(grammar, tokenizer, written(known, NOW))
    assert not accepts(grammar, tokenizer, written(known, NOW, NOW))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Grammar("json_schema", '{"type": "object", "required": ["a"]}'), '{"a": 1}', "[]"),
        (Grammar("regex", "[a-z]+/[0-9]"), "ab/1", "ab1"),
        (Grammar("regex", r"a\/b"), "a/b", "ab"),
    ],
)
def test_a_grammar_binds_what_follows_the_reasoning(grammar: Grammar, good: str, bad: str, special: bool) -> None:
    tokenizer = TOKENIZERS[special]
    bound = after_thought(grammar, tokenizer)
    assert accepts(bound, tokenizer, f"Hm, {{ 7.</think>\n\n{good}")
    assert not accepts(bound, tokenizer, f"Hm.</think>\n\n{bad}")
    assert not accepts(bound, tokenizer, good)


@pytest.mark.parametrize(
    ("template", "names", "expected"),
    [
        ("… <tool_call> …", [], HERMES),
        ("… [TOOL_CALLS] …", [], MISTRAL),
        ("… <|python_tag|> …", [], LLAMA),
        ("{{ messages }}", ["[TOOL_CALLS]"], MISTRAL),
        ("{{ messages }}", ["<|python_tag|>"], LLAMA),
        ("{{ messages }}", [], HERMES),
    ],
)
def test_the_format_is_that_of_the_template_and_the_tokens(
    template: str, names: list[str], expected: ToolFormat
) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.add_special_tokens(names)
    assert tool_format(template, TextTokenizer(tokenizer, TokenizerSettings())) is expected


def test_special_markers_are_visible_only_to_who_asks() -> None:
    tokenizer = TOKENIZERS[True]
    ids: list[int] = tokenizer.encode_rendered("a<tool_call>b</s>")
    assert tokenizer.detokenizer().feed(ids) == "ab"
    visible: Any = tokenizer.special_among(markers(HERMES))
    assert tokenizer.detokenizer(visible).feed(ids) == "a<tool_call>b"
