"""Python clients of a MultiModel endpoint, for what OpenAI's API lacks: models, their states, unload and reload.

To chat from a program, use the official `openai` package with `base_url="http://127.0.0.1:1234/v1"`; the chat methods
here are just enough for a terminal. When the endpoint cannot be reached, httpx's own errors are raised.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from multimodel_api import names
from multimodel_api.chat import ChatCompletion, ChatCompletionChunk, ChatMessage
from multimodel_api.errors import ErrorBody, ErrorDetail
from multimodel_api.lifecycle import LifecycleReply, LifecycleRequest, ModelCard, ModelList

API_KEY_VARIABLE = "MULTIMODEL_API_KEY"
"""The environment variable from which the commands take their key."""

DEFAULT_URL = f"http://127.0.0.1:{names.ROUTER_PORT}"

Message = ChatMessage | Mapping[str, str]
Call = dict[str, Any]
"""Arguments of `httpx.Client.request`."""

_Answer = TypeVar("_Answer", bound=BaseModel)
_LIFECYCLE: TypeAdapter[LifecycleReply | ErrorBody] = TypeAdapter(LifecycleReply | ErrorBody)
_EVENT: TypeAdapter[ChatCompletionChunk | ErrorBody] = TypeAdapter(ChatCompletionChunk | ErrorBody)

_PATIENT = httpx.Timeout(None, connect=5.0)  # an answer may take as long as a model takes to load
_LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")
_MAX_FOREIGN_TEXT = 200


class MultiModelError(Exception):
    """The endpoint refused or failed; carries the HTTP status and OpenAI's `code` and `param`.

    A stream that fails after it began keeps the status it began with, 200.
    """

    def __init__(self, status: int, detail: ErrorDetail) -> None:
        super().__init__(detail.message)
        self.status = status
        self.code = detail.code
        self.param = detail.param


class Client:
    """A synchronous client; close it, or use it in a `with` block."""

    def __init__(self, base_url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        no_proxy: dict[str, httpx.BaseTransport | None] = dict.fromkeys(_LOOPBACK)
        headers = _authorization(api_key)
        self._http = httpx.Client(base_url=_root(base_url), headers=headers, timeout=_PATIENT, mounts=no_proxy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def list_models(self) -> list[ModelCard]:
        """Return every model's card, the `default` one first."""
        return _answer(ModelList, self._http.request(**_list_call())).data

    def model(self, model_id: str) -> ModelCard:
        """Return one model's card, with the progress of its load and the failure of a load that failed."""
        return _answer(ModelCard, self._http.request(**_model_call(model_id)))

    def status(self, model_id: str) -> LifecycleReply:
        """Return the state of a model; an unknown id is a state as well, `not_found`."""
        return _lifecycle_answer(self._http.request(**_lifecycle_call("status", model_id)))

    def unload(self, model_id: str, *, drain_seconds: float | None = None, reason: str | None = None) -> LifecycleReply:
        """Unload a model, which the next request for it loads again; running requests may take `drain_seconds`."""
        call = _lifecycle_call("unload", model_id, drain_seconds=drain_seconds, reason=reason)
        return _lifecycle_answer(self._http.request(**call))

    def reload(self, model_id: str, *, reason: str | None = None) -> LifecycleReply:
        """Load a model and return when it is loaded, or has failed to load."""
        return _lifecycle_answer(self._http.request(**_lifecycle_call("reload", model_id, reason=reason)))

    def chat(
        self,
        messages: Sequence[Message],
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> ChatCompletion:
        """Return the answer to a conversation; without `model` the default model gives it."""
        call = _chat_call(messages, model=model, max_tokens=max_tokens, temperature=temperature)
        return _answer(ChatCompletion, self._http.request(**call))

    def stream_chat(
        self,
        messages: Sequence[Message],
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Iterator[ChatCompletionChunk]:
        """Yield the answer to a conversation as it is made."""
        call = _chat_call(messages, model=model, max_tokens=max_tokens, temperature=temperature, stream=True)
        with self._http.stream(**call) as response:
            if response.is_error:
                response.read()
            _raise_for_error(response)
            for line in response.iter_lines():
                if (data := _event_data(line)) is not None:
                    yield _chunk(data, response)


class AsyncClient:
    """The asynchronous client: `Client`'s methods, awaited."""

    def __init__(self, base_url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        no_proxy: dict[str, httpx.AsyncBaseTransport | None] = dict.fromkeys(_LOOPBACK)
        headers = _authorization(api_key)
        self._http = httpx.AsyncClient(base_url=_root(base_url), headers=headers, timeout=_PATIENT, mounts=no_proxy)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def list_models(self) -> list[ModelCard]:
        """Return every model's card, the `default` one first."""
        return _answer(ModelList, await self._http.request(**_list_call())).data

    async def model(self, model_id: str) -> ModelCard:
        """Return one model's card, with the progress of its load and the failure of a load that failed."""
        return _answer(ModelCard, await self._http.request(**_model_call(model_id)))

    async def status(self, model_id: str) -> LifecycleReply:
        """Return the state of a model; an unknown id is a state as well, `not_found`."""
        return _lifecycle_answer(await self._http.request(**_lifecycle_call("status", model_id)))

    async def unload(
        self, model_id: str, *, drain_seconds: float | None = None, reason: str | None = None
    ) -> LifecycleReply:
        """Unload a model, which the next request for it loads again; running requests may take `drain_seconds`."""
        call = _lifecycle_call("unload", model_id, drain_seconds=drain_seconds, reason=reason)
        return _lifecycle_answer(await self._http.request(**call))

    async def reload(self, model_id: str, *, reason: str | None = None) -> LifecycleReply:
        """Load a model and return when it is loaded, or has failed to load."""
        return _lifecycle_answer(await self._http.request(**_lifecycle_call("reload", model_id, reason=reason)))

    async def chat(
        self,
        messages: Sequence[Message],
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> ChatCompletion:
        """Return the answer to a conversation; without `model` the default model gives it."""
        call = _chat_call(messages, model=model, max_tokens=max_tokens, temperature=temperature)
        return _answer(ChatCompletion, await self._http.request(**call))

    async def stream_chat(
        self,
        messages: Sequence[Message],
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> AsyncIterator[ChatCompletionChunk]:
        """Yield the answer to a conversation as it is made."""
        call = _chat_call(messages, model=model, max_tokens=max_tokens, temperature=temperature, stream=True)
        async with self._http.stream(**call) as response:
            if response.is_error:
                await response.aread()
            _raise_for_error(response)
            async for line in response.aiter_lines():
                if (data := _event_data(line)) is not None:
                    yield _chunk(data, response)


def _root(base_url: str) -> str:
    """Return the endpoint's root: the URL that OpenAI's clients take ends in `/v1`, and is as good."""
    return base_url.rstrip("/").removesuffix("/v1")


def _authorization(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _list_call() -> Call:
    return {"method": "GET", "url": "/v1/models"}


def _model_call(model_id: str) -> Call:
    escaped = quote(model_id, safe="")  # slashes too: an id may be a path like ./folder, which must not be normalised
    return {"method": "GET", "url": f"/v1/models/{escaped}"}


def _lifecycle_call(
    action: str, model_id: str, *, drain_seconds: float | None = None, reason: str | None = None
) -> Call:
    request = LifecycleRequest(model_id=model_id, drain_seconds=drain_seconds, reason=reason)
    body = request.model_dump(exclude_none=True)
    return {"method": "POST", "url": f"/v1/models/{action}", "json": body}


def _chat_call(messages: Sequence[Message], **fields: object) -> Call:
    """Return the request for a chat completion; fields that are None are left to the endpoint."""
    given = {name: value for name, value in fields.items() if value is not None}
    plain = [
        message.model_dump(exclude_none=True) if isinstance(message, ChatMessage) else dict(message)
        for message in messages
    ]
    return {"method": "POST", "url": "/v1/chat/completions", "json": {"messages": plain, **given}}


def _answer(kind: type[_Answer], response: httpx.Response) -> _Answer:
    _raise_for_error(response)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        raise _foreign_error(response, response.text) from None


def _lifecycle_answer(response: httpx.Response) -> LifecycleReply:
    """Return the reply of a lifecycle route, which has a body of its own under error statuses too."""
    try:
        answer = _LIFECYCLE.validate_json(response.content)
    except ValidationError:
        raise _foreign_error(response, response.text) from None
    if isinstance(answer, ErrorBody):
        raise MultiModelError(response.status_code, answer.error)
    return answer


def _raise_for_error(response: httpx.Response) -> None:
    if response.status_code == HTTPStatus.OK:
        return
    try:
        detail = ErrorBody.model_validate_json(response.content).error
    except ValidationError:
        raise _foreign_error(response, response.text) from None
    raise MultiModelError(response.status_code, detail)


def _foreign_error(response: httpx.Response, text: str) -> MultiModelError:
    """Return the error for an answer that no MultiModel endpoint gives, such as a proxy's page."""
    shown = repr(text[:_MAX_FOREIGN_TEXT])
    message = f"{response.url} is no MultiModel endpoint: it answered {response.status_code}: {shown}"
    return MultiModelError(response.status_code, ErrorDetail(message=message, type="server_error"))


def _event_data(line: str) -> str | None:
    """Return the data of a line of an event stream, None for other lines and the end mark."""
    data = line.removeprefix("data:").strip()
    return data if line.startswith("data:") and data != "[DONE]" else None


def _chunk(data: str, response: httpx.Response) -> ChatCompletionChunk:
    try:
        event = _EVENT.validate_json(data)
    except ValidationError:
        raise _foreign_error(response, data) from None
    if isinstance(event, ErrorBody):
        raise MultiModelError(response.status_code, event.error)
    return event
