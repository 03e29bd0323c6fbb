"""Writes answers as a chat completion, whole or in chunks."""

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from multimodel_api.chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    FunctionCall,
    ToolCall,
)
from multimodel_server.answer import Piece
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.logprobs import chat_logprobs
from multimodel_server.routes.streams import Event
from multimodel_server.text.parts import CallArguments, CallBegin, Content, Part, Reasoning, gathered
from multimodel_server.text.tokenizer import TextTokenizer


class ChatReply:
    """One chat completion."""

    def __init__(self, choices: Choices, model: str, tokenizer: TextTokenizer, *, logprobs: bool) -> None:
        self._choices = choices
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._tokenizer = tokenizer
        self._logprobs = logprobs

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

    async def events(self, *, include_usage: bool) -> AsyncGenerator[Event, None]:
        """Yield the chunks: of every choice the role, what is said, and why it ends; then the usage if wanted."""
        begun: set[int] = set()
        async with aclosing(self._choices.pieces()) as pieces:
            async for index, piece in pieces:
                if index not in begun:
                    begun.add(index)
                    yield self._chunk(index, {"role": "assistant", "content": ""}, include_usage=include_usage)
                for delta, more in self._growth(piece):
                    yield self._chunk(index, delta, more, include_usage=include_usage)
        if include_usage:
            last = ChatCompletionChunk(
                id=self._id, created=self._created, model=self._model, choices=[], usage=self._choices.usage
            )
            yield Event(last.model_dump_json())

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

    def _chunk(
        self, index: int, delta: dict[str, Any], more: dict[str, Any] | None = None, *, include_usage: bool
    ) -> Event:
        document = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": index, "delta": delta, "finish_reason": None, **(more or {})}],
        }
        if include_usage:
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
