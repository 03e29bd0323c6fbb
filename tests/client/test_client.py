"""The Python clients, synchronous and asynchronous, against an endpoint on loopback."""

from http import HTTPStatus

import httpx
import pytest

from multimodel import AsyncClient, Client, MultiModelError
from multimodel_api import errors
from multimodel_api.chat import ChatMessage
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.state import ModelState

QUESTION = [{"role": "user", "content": "two words"}]


class Awaitable:
    """An AsyncClient under the tests of both clients: every method a coroutine function."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        method = getattr(self.client, name)

        async def call(*arguments, **options):
            result = method(*arguments, **options)
            if name == "stream_chat":
                return [chunk async for chunk in result] if hasattr(result, "__aiter__") else list(result)
            return await result if hasattr(result, "__await__") else result

        return call


@pytest.fixture(params=["sync", "async"])
async def client(request, endpoint):
    if request.param == "sync":
        with Client(endpoint.url) as sync_client:
            yield Awaitable(sync_client)
    else:
        async with AsyncClient(endpoint.url) as async_client:
            yield Awaitable(async_client)


async def test_lists_models_with_default_first(client):
    cards = await client.list_models()
    assert [card.id for card in cards] == ["default", "math", "org/words"]
    assert [card.status for card in cards] == [None, ModelState.LOADED, ModelState.LOADED]


async def test_a_model_whose_id_has_slashes_has_a_page(client):
    card = await client.model("org/words")
    assert (card.id, card.canonical_id) == ("org/words", "models/org/words")


@pytest.mark.parametrize("model_id", ["./folder", "../folder", "/models/a//b", "a?b#c%2F d", "é"])
async def test_any_id_reaches_the_endpoint_as_it_is(client, endpoint, model_id):
    endpoint.cards[model_id] = endpoint.cards["math"].model_copy(update={"id": model_id})
    assert (await client.model(model_id)).id == model_id


async def test_an_unknown_model_is_an_error_that_names_the_known_ids(client):
    with pytest.raises(MultiModelError, match="Known models: 'math', 'org/words'") as raised:
        await client.model("nope")
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "model_not_found", "model")


async def test_unload_status_reload(client):
    assert (await client.unload("math")).status is ModelState.UNLOADED
    assert (await client.status("math")).status is ModelState.UNLOADED
    assert (await client.reload("math")).status is ModelState.LOADED


async def test_an_unknown_id_is_a_state_in_a_lifecycle_reply(client):
    reply = await client.unload("nope")
    assert (reply.model_id, reply.status) == ("nope", ModelState.NOT_FOUND)


async def test_a_failed_load_is_a_state_with_its_error(client, endpoint):
    failure = LoadFailure(reason=FailureReason.BAD_WEIGHTS, message="model.safetensors is cut short")
    endpoint.set("math", status=ModelState.INTERNAL_ERROR, failure=failure)
    reply = await client.reload("math")
    assert (reply.status, reply.error) == (ModelState.INTERNAL_ERROR, "BadWeights: model.safetensors is cut short")
    assert (await client.model("math")).failure == failure


async def test_chat_leaves_unset_fields_to_the_endpoint(client, endpoint):
    answer = await client.chat(QUESTION)
    assert answer.choices[0].message.content == "You said: two words"
    assert endpoint.bodies == [{"messages": QUESTION}]


async def test_chat_sends_typed_messages_model_and_sampling(client, endpoint):
    await client.chat([ChatMessage(role="user", content="hi")], "math", max_tokens=5, temperature=0.0)
    expected = {"messages": [{"role": "user", "content": "hi"}], "model": "math", "max_tokens": 5, "temperature": 0.0}
    assert endpoint.bodies == [expected]


async def test_a_streamed_chat_is_the_same_text_in_pieces(client):
    chunks = await client.stream_chat(QUESTION, "math")
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == "You said: two words"
    assert len([piece for piece in pieces if piece]) == 4


async def test_a_refused_chat_carries_openais_fields_streamed_or_not(client, endpoint):
    endpoint.chat_error = errors.invalid_request(
        "messages: too long.", param="messages", code="context_length_exceeded"
    )
    for method in (client.chat, client.stream_chat):
        with pytest.raises(MultiModelError, match="too long") as raised:
            await method(QUESTION)
        error = raised.value
        assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")


async def test_a_stream_that_breaks_raises_what_the_endpoint_says(client, endpoint):
    endpoint.breaks_mid_stream = True
    with pytest.raises(MultiModelError, match=r"The engine died\.") as raised:
        await client.stream_chat(QUESTION)
    assert (raised.value.status, raised.value.code) == (HTTPStatus.OK, "EngineCrashed")


@pytest.mark.parametrize("status", [200, 502])
async def test_an_answer_that_no_endpoint_gives_is_shown(client, endpoint, monkeypatch, status):
    monkeypatch.setattr(endpoint.RequestHandlerClass, "do_GET", lambda handler: handler.send(status, "<h1>Hello</h1>"))
    with pytest.raises(MultiModelError, match=f"answered {status}: '<h1>Hello</h1>'"):
        await client.list_models()


def test_the_url_may_be_the_one_for_openais_clients(endpoint):
    with Client(f"{endpoint.url}/v1/") as client:
        assert client.status("math").status is ModelState.LOADED


def test_an_endpoint_that_is_not_there_raises_httpx_error():
    with Client("http://127.0.0.1:9") as client, pytest.raises(httpx.ConnectError):
        client.list_models()


def test_loopback_is_reached_without_the_proxy_of_the_environment(endpoint, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(endpoint.url) as client:
        assert client.status("math").status is ModelState.LOADED
