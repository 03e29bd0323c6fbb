"""What the official clients of OpenAI and Anthropic get from a real server."""

import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import torch
from transformers import AutoModel, PreTrainedTokenizerFast

HELLO = [{"role": "user", "content": "hello world"}]
PARAMETERS = {
    "type": "object",
    "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}, "sign": {"enum": ["+", "-"]}},
    "required": ["digit", "sign"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
ADD = {"type": "function", "function": {"name": "add"}}


def is_add(arguments: str) -> bool:
    found = json.loads(arguments)
    return set(found) == {"digit", "sign"} and 0 <= found["digit"] <= 9 and found["sign"] in ("+", "-")


@pytest.fixture(scope="module")
def openai_client(server: Any) -> Any:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(server: Any) -> Any:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_named_function_is_called(openai_client: Any) -> None:
    completion = openai_client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS, tool_choice=ADD)
    (choice,) = completion.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.type) == ("tool_calls", None, "function")
    assert call.function.name == "add"
    assert is_add(call.function.arguments)


def test_a_call_is_streamed_its_name_first(openai_client: Any) -> None:
    stream = openai_client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, tool_choice=ADD, stream=True, seed=1
    )
    choices = [chunk.choices[0] for chunk in stream]
    deltas = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert not any(choice.delta.content for choice in choices)
    assert (deltas[0].function.name, deltas[0].function.arguments, deltas[0].type) == ("add", "", "function")
    assert len(deltas[0].id) == 9
    assert all(delta.id is None and delta.index == 0 for delta in deltas[1:])
    assert len(deltas) > 2
    assert is_add("".join(delta.function.arguments for delta in deltas))
    assert choices[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_of_one_of_the_tools(openai_client: Any, seed: int) -> None:
    completion = openai_client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
        temperature=1, seed=seed,
    )  # fmt: skip
    (call,) = completion.choices[0].message.tool_calls
    assert is_add(call.function.arguments) if call.function.name == "add" else call.function.arguments == "{}"


@pytest.mark.parametrize("tool_choice", ["auto", "none"])
def test_a_model_that_calls_nothing_just_answers(openai_client: Any, tool_choice: Any) -> None:
    choice = openai_client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, tool_choice=tool_choice, max_tokens=8
    ).choices[0]
    plain = openai_client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8).choices[0]
    assert choice.message == plain.message
    assert choice.message.tool_calls is None


def test_structured_output_is_parsed(openai_client: Any) -> None:
    completion = openai_client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": PARAMETERS, "strict": True}},
    )
    assert is_add(completion.choices[0].message.content)


def test_embeddings_are_the_last_hidden_states(openai_client: Any, tiny_model: Path) -> None:
    texts = ["one two", "hello world, how are you today?"]
    answer = openai_client.embeddings.create(model="tiny", input=texts)
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(tiny_model), AutoModel.from_pretrained(tiny_model)
    ids = [tokenizer(text).input_ids for text in texts]
    for found, one in zip(answer.data, ids, strict=True):
        with torch.no_grad():
            expected = torch.nn.functional.normalize(model(torch.tensor([one])).last_hidden_state[0, -1], dim=0)
        assert found.embedding == pytest.approx(expected.tolist(), abs=1e-4)
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    again = openai_client.embeddings.create(model="tiny", input=ids, encoding_format="float")
    assert [one.embedding for one in again.data] == [pytest.approx(one.embedding, abs=1e-5) for one in answer.data]
    single = openai_client.embeddings.create(model="tiny", input=ids[0]).data[0].embedding
    assert math.fsum(number**2 for number in single) == pytest.approx(1, abs=1e-4)


def test_embeddings_in_base64_are_little_endian_floats(server: Any) -> None:
    with server.http() as client:
        plain, coded = (
            client.post("/v1/embeddings", json={"input": "one", "encoding_format": encoding}).json()["data"][0]
            for encoding in ("float", "base64")
        )
    found = struct.unpack("<64f", base64.b64decode(coded["embedding"]))
    assert list(found) == pytest.approx(plain["embedding"], abs=1e-6)


def test_an_anthropic_message_says_what_a_chat_completion_says(anthropic_client: Any, openai_client: Any) -> None:
    message = anthropic_client.messages.create(model="tiny", max_tokens=12, system="Be brief.", messages=HELLO)
    chat = openai_client.chat.completions.create(
        model="tiny", max_tokens=12, messages=[{"role": "system", "content": "Be brief."}, *HELLO]
    )
    assert [block.text for block in message.content] == [chat.choices[0].message.content]
    assert (message.role, message.model, message.stop_reason) == ("assistant", "tiny", "max_tokens")
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens
    counted = anthropic_client.messages.count_tokens(model="tiny", system="Be brief.", messages=HELLO)
    assert counted.input_tokens == chat.usage.prompt_tokens


def test_a_streamed_message_is_the_whole_one(anthropic_client: Any) -> None:
    asked = {"model": "tiny", "max_tokens": 24, "messages": HELLO}
    whole = anthropic_client.messages.create(**asked)
    with anthropic_client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.text for block in final.content] == [block.text for block in whole.content]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


def test_the_stop_sequence_is_named(anthropic_client: Any) -> None:
    text = anthropic_client.messages.create(model="tiny", max_tokens=24, messages=HELLO).content[0].text
    stop = text[8:11]
    message = anthropic_client.messages.create(
        model="tiny", max_tokens=24, messages=HELLO, stop_sequences=["never there", stop]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_anthropic_tools_both_ways(anthropic_client: Any) -> None:
    tools = [{"name": "add", "description": "Adds.", "input_schema": PARAMETERS}]
    asked = {"model": "tiny", "max_tokens": 200, "tools": tools, "tool_choice": {"type": "tool", "name": "add"}}
    message = anthropic_client.messages.create(**asked, messages=HELLO)
    (block,) = message.content
    assert (message.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "add")
    assert is_add(json.dumps(block.input))
    with anthropic_client.messages.stream(**asked, messages=HELLO) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.name, is_add(json.dumps(streamed.input))) == ("add", True)


def test_anthropic_errors_have_anthropics_shape(anthropic_client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        anthropic_client.messages.create(model="claude", max_tokens=1, messages=HELLO)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as wrong:
        anthropic_client.messages.create(model="tiny", max_tokens=0, messages=HELLO)
    assert wrong.value.body["type"] == "error"
    assert "max_tokens" in wrong.value.body["error"]["message"]
    with pytest.raises(anthropic.BadRequestError, match="no tools here"):
        result = {"type": "tool_result", "tool_use_id": "x", "content": "3"}
        anthropic_client.messages.create(
            model="tiny", max_tokens=1, messages=[*HELLO, {"role": "user", "content": [result]}]
        )


def test_a_response_says_what_a_chat_completion_says(openai_client: Any) -> None:
    response = openai_client.responses.create(
        model="tiny", instructions="Be brief.", input="hello world", max_output_tokens=12
    )
    chat = openai_client.chat.completions.create(
        model="tiny", max_tokens=12, messages=[{"role": "system", "content": "Be brief."}, *HELLO]
    )
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == chat.usage.completion_tokens
    items = [{"role": "system", "content": [{"type": "input_text", "text": "Be brief."}]}, *HELLO]
    again = openai_client.responses.create(model="tiny", input=items, max_output_tokens=12)
    assert again.output_text == response.output_text


def test_the_events_of_a_response(openai_client: Any) -> None:
    asked = {"model": "tiny", "input": "hello world", "max_output_tokens": 12}
    whole = openai_client.responses.create(**asked)
    with openai_client.responses.stream(**asked) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert events[-1].response.output[0].content[0].text == whole.output_text


def test_a_response_calls_a_function(openai_client: Any) -> None:
    tools = [{"type": "function", "name": "add", "parameters": PARAMETERS, "strict": True}]
    asked = {"model": "tiny", "input": "hello", "tools": tools, "tool_choice": {"type": "function", "name": "add"}}
    response = openai_client.responses.create(**asked)
    (call,) = response.output
    assert (response.status, call.type, call.name, is_add(call.arguments)) == (
        "completed",
        "function_call",
        "add",
        True,
    )
    with openai_client.responses.stream(**asked) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == events[-1].response.output[0].arguments
    formatted = openai_client.responses.create(
        model="tiny", input="hello", text={"format": {"type": "json_schema", "name": "sum", "schema": PARAMETERS}}
    )
    assert is_add(formatted.output_text)


def test_what_a_response_cannot_do_is_refused(openai_client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="not stored") as refused:
        openai_client.responses.create(model="tiny", input="a", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as too_long:
        openai_client.responses.create(model="tiny", input="xy" * 5000)
    assert too_long.value.param == "input"
