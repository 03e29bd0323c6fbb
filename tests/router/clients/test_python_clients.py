"""The Python clients of OpenAI and Anthropic, unchanged, against the router and the example models."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

ASKED: Any = [{"role": "user", "content": "What is 2 plus 3?"}]
ANSWER = "2 + 3 = 5."
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PARAMETERS = {
    "type": "object",
    "properties": {"a": DIGIT, "b": DIGIT},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}]
ADD: Any = {"type": "function", "function": {"name": "add"}}
ENDLESS: Any = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def in_flight(url: str) -> float:
    page = httpx.get(f"{url}/metrics", trust_env=False).text
    name = 'multimodel_router_requests_in_flight{model="abacus"} '
    return next(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))


def until_none_in_flight(url: str) -> None:
    deadline = time.monotonic() + 10
    while in_flight(url):
        assert time.monotonic() < deadline, "the request still runs"
        time.sleep(0.02)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["default", "math", "words"]
    assert client.models.retrieve("words").id == "words"


@pytest.mark.parametrize("model", ["default", "math", "examples/models/abacus"])
def test_chat(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=ASKED, temperature=0)
    assert reply.choices[0].message.content == ANSWER
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0
    assert reply._request_id


def test_two_models_answer_each_its_own(client: openai.OpenAI) -> None:
    said = {
        model: client.chat.completions.create(model=model, messages=ASKED, temperature=0).choices[0].message.content
        for model in ("math", "words")
    }
    assert said["math"] == ANSWER
    assert "spell" in str(said["words"])


def test_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="math", messages=ASKED, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage is not None


async def test_asynchronously(async_client: openai.AsyncOpenAI) -> None:
    reply = await async_client.chat.completions.create(model="math", messages=ASKED, temperature=0)
    stream = await async_client.chat.completions.create(model="math", messages=ASKED, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert reply.choices[0].message.content == "".join(pieces) == ANSWER
    assert [model.id async for model in async_client.models.list()] == ["default", "math", "words"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "math", "messages": ASKED, "tools": TOOLS, "tool_choice": ADD, "temperature": 0}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            events.until_done()
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason) == ("add", "tool_calls")
    assert {"a", "b"} == set(json.loads(call.function.arguments))


def test_embeddings(client: openai.OpenAI) -> None:
    one, same, other = (
        client.embeddings.create(model="math", input=text).data[0].embedding for text in ("two", "two", "three")
    )
    assert one == pytest.approx(same, abs=1e-5)
    assert one != pytest.approx(other, abs=1e-2)


def test_completions_and_responses(client: openai.OpenAI) -> None:
    assert client.completions.create(model="math", prompt="2 + 3", max_tokens=4).choices[0].text
    assert client.responses.create(model="math", input="What is 2 plus 3?", temperature=0).output_text == ANSWER


def test_errors_are_of_the_right_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'math', 'words'") as unknown:
        client.chat.completions.create(model="nope", messages=ASKED)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="math", messages=[])
    assert wrong.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="math", prompt="a sum")


def test_a_timeout_ends_the_request_upstream_too(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.02).chat.completions.create(model="math", messages=ASKED, **ENDLESS)
    until_none_in_flight(url)


def test_an_aborted_stream_ends_upstream_too(client: openai.OpenAI, url: str) -> None:
    stream = client.chat.completions.create(model="math", messages=ASKED, stream=True, **ENDLESS)
    next(iter(stream))
    assert in_flight(url) == 1
    stream.close()
    until_none_in_flight(url)
    assert client.chat.completions.create(model="math", messages=ASKED, temperature=0).choices[0].message.content


def test_anthropic(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "math", "max_tokens": 30, "messages": ASKED}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as events:
        streamed = "".join(events.text_stream)
    assert getattr(whole.content[0], "text", None) == streamed == ANSWER
    assert claude.messages.count_tokens(model="math", messages=ASKED).input_tokens == whole.usage.input_tokens
    with pytest.raises(anthropic.NotFoundError, match="'math', 'words'"):
        claude.messages.create(**asked | {"model": "nope"})
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(**asked | {"messages": []})
