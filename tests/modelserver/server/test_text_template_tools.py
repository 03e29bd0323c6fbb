"""Conversations with tools make the prompts that transformers makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from multimodel_api.chat import ChatMessage, Tool
from multimodel_server.text.template import ChatTemplate

TEMPLATES = Path(__file__).parent / "templates"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the wéather <now>.",
            "parameters": {
                "type": "object",
                "properties": {"unit": {"enum": ["C", "F"]}, "city": {"type": "string"}},
                "required": ["city"],
            },
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
ARGUMENTS = {"city": "Zürich"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
AGENT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "reasoning_content": "They ask.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": '{"temperature": 3}'},
    {"role": "assistant", "content": "Cold."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "tomorrow?"}]},
]


@pytest.mark.parametrize("style", ["hermes", "llama", "mistral"])
@pytest.mark.parametrize("tools", [[], TOOLS], ids=["no-tools", "tools"])
@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False, "made_up": [1]}], ids=["plain", "kwargs"])
@pytest.mark.parametrize("length", [2, 3, 4, 6])
def test_agents_conversations_are_rendered_as_transformers_renders_them(
    style: str, tools: list[Any], kwargs: dict[str, Any], length: int, tiny_model: Path
) -> None:
    oracle = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    source = (TEMPLATES / f"{style}.jinja").read_text()
    expected = oracle.apply_chat_template(
        AGENT[:length], chat_template=source, tools=tools or None, tokenize=False, add_generation_prompt=True, **kwargs
    )
    messages = [ChatMessage.model_validate(_on_the_wire(message)) for message in AGENT[:length]]
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, "a test")
    assert template.render(messages, [Tool.model_validate(tool) for tool in tools], kwargs) == expected


def _on_the_wire(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as OpenAI's clients send it: a call's arguments are JSON text."""
    if "tool_calls" not in message:
        return message
    function = {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}
    return {**message, "tool_calls": [{**CALL, "function": function}]}
