"""Writes answers as a chat completion, whole or in chunks."""

import json
from typing import Any

from multimodel_api.chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    FunctionCall,
    ToolCall,
)
from multimodel_api.errors import ApiError
from multimodel_server.answer import Piece
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.logprobs import chat_logprobs
from multimodel_server.routes.transcript import DONE, Event, openai_failure
from multimodel_server.text.parts import CallArguments, CallBegin, Content, Part, Reasoning, gathered
from multimodel_server.text.tokenizer import TextTokenizer


class ChatReply:
    """One chat completion."""

    def __init__(self, choices: Choices, body: ChatCompletionRequest, model: str, tokenizer: TextTokenizer) -> None:
        self._choices = choices
        self._id = f"chatcmpl-{choices.identity.number}"
        self._created = choices.identity.created
        self._model = model
        self._tokenizer = tokenizer
        self._logprobs = body.logprobs
        self._include_usage = body.include_usage

    async def whole(self) -> ChatCompletion:
        """Return the completion."""
        found = await self._choices.whole()
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(index, pieces) for index, pieces in enumerate(found)],
            usage=self._choices.usage,
        )

    def opening(self, index: int) -> list[Event]:
        """Return the chunk with a choice's role."""
        return [self._chunk(index, {"role": "assistant", "content": ""})]

    def growth(self, index: int, piece: Piece) -> list[Event]:
        """Return the chunks with what a choice says, and why it ends."""
        return [self._chunk(index, delta, more) for delta, more in self._growth(piece)]

    def closing(self) -> list[Event]:
        """Return the usage, if it is wanted, and the end."""
        if not self._include_usage:
            return [DONE]
        last = ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=[], usage=self._choices.usage
        )
        return [Event(last.model_dump_json()), DONE]

    def failure(self, error: ApiError) -> Event:
        """Return the event that tells of an error."""
        return openai_failure(error)

    def _choice(self, index: int, pieces: list[Piece]) -> ChatChoice:
        reply = gathered([part for piece in pieces for part in piece.parts])
        calls = [
            ToolCall(id=call.call_id, function=FunctionCall(name=call.name, arguments=call.arguments))
            for call in reply.calls
        ]
        tokens = [token for piece in pieces for token in piece.logprobs]
        return ChatChoice(
            index=index,
            message=AssistantMessage(
                content=reply.content if reply.content or not calls else None,
                reasoning_content=reply.reasoning or None,
                tool_calls=calls or None,
            ),
            logprobs=chat_logprobs(self._tokenizer, tokens) if self._logprobs else None,
            finish_reason=pieces[-1].finish_reason or "stop",
        )

    def _growth(self, piece: Piece) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return a piece's deltas, and what stands beside each: log-probabilities at first, why it ends at last."""
        growth: list[tuple[dict[str, Any], dict[str, Any]]] = [(_delta(part), {}) for part in piece.parts]
        if self._logprobs and piece.logprobs:
            growth = growth or [({}, {})]
            growth[0][1]["logprobs"] = chat_logprobs(self._tokenizer, piece.logprobs).model_dump()
        if piece.finish_reason is not None:
            growth.append(({}, {"finish_reason": piece.finish_reason}))
        return growth

    def _chunk(self, index: int, delta: dict[str, Any], more: dict[str, Any] | None = None) -> Event:
        document = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": index, "delta": delta, "finish_reason": None, **(more or {})}],
        }
        if self._include_usage:
            document["usage"] = None
        return Event(json.dumps(document, ensure_ascii=False, separators=(",", ":")))


def _delta(part: Part) -> dict[str, Any]:
    match part:
        case Content():
            return {"content": part.text}
        case Reasoning():
            return {"reasoning_content": part.text}
        case CallBegin():
            function = {"name": part.name, "arguments": ""}
            return {"tool_calls": [{"index": part.index, "id": part.call_id, "type": "function", "function": function}]}
        case CallArguments():
            return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
