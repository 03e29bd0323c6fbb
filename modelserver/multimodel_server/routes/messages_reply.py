"""Writes an answer as Anthropic's message, whole or in events."""

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from multimodel_api.anthropic import (
    MessagesAnswer,
    MessagesUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    messages_error,
)
from multimodel_api.errors import ApiError
from multimodel_server.answer import Piece
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.streams import Event
from multimodel_server.text.blocks import Block, BlockReader, Change, Kind, Step

_STOP_REASONS: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS = {
    Kind.REASONING: ("thinking_delta", "thinking"),
    Kind.CONTENT: ("text_delta", "text"),
    Kind.CALL: ("input_json_delta", "partial_json"),
}


class MessagesReply:
    """One message."""

    def __init__(self, choices: Choices, model: str) -> None:
        self._choices = choices
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = model

    async def whole(self) -> MessagesAnswer:
        """Return the message."""
        (pieces,) = await self._choices.whole()
        reader = BlockReader()
        for piece in pieces:
            for part in piece.parts:
                reader.feed(part)
        return MessagesAnswer(
            id=self._id,
            model=self._model,
            content=[_whole(block) for block in reader.blocks],
            stop_reason=_stop_reason(pieces[-1]),
            stop_sequence=pieces[-1].stopped_by,
            usage=self._usage,
        )

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events: the message's start, its blocks one after the other, why it stops, and its end."""
        reader = BlockReader()
        begun = False
        async with aclosing(self._choices.pieces()) as pieces:
            async for _, piece in pieces:
                if not begun:
                    begun = True
                    message = MessagesAnswer(id=self._id, model=self._model, usage=self._usage)
                    yield _event("message_start", message=message.model_dump())
                    yield _event("ping")
                for part in piece.parts:
                    for change in reader.feed(part):
                        yield _block_event(change)
                if piece.finish_reason is not None:
                    for change in reader.end():
                        yield _block_event(change)
                    yield self._delta(piece)
        yield _event("message_stop")

    def _delta(self, piece: Piece) -> Event:
        delta = {"stop_reason": _stop_reason(piece), "stop_sequence": piece.stopped_by}
        return _event("message_delta", delta=delta, usage=self._usage.model_dump())

    @property
    def _usage(self) -> MessagesUsage:
        usage = self._choices.usage
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        return MessagesUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
        )


def failure(error: ApiError) -> Event:
    """Return the event that tells Anthropic's clients of an error."""
    return Event(messages_error(error).model_dump_json(), "error")


def _stop_reason(piece: Piece) -> StopReason:
    if piece.stopped_by is not None and piece.finish_reason == "stop":
        return "stop_sequence"
    return _STOP_REASONS[piece.finish_reason or "stop"]


def _whole(block: Block) -> TextBlock | ThinkingBlock | ToolUseBlock:
    match block.kind:
        case Kind.REASONING:
            return ThinkingBlock(thinking=block.text)
        case Kind.CONTENT:
            return TextBlock(text=block.text)
        case Kind.CALL:
            return ToolUseBlock(id=block.call_id, name=block.name, input=_arguments(block.text))


def _arguments(text: str) -> dict[str, Any]:
    """Return a call's arguments; none where the answer ended within them."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _block_event(change: Change) -> Event:
    block = change.block
    match change.step:
        case Step.OPEN:
            empty = _whole(Block(block.index, block.kind, block.call_id, block.name))
            return _event("content_block_start", index=block.index, content_block=empty.model_dump())
        case Step.GROW:
            kind, field = _DELTAS[block.kind]
            return _event("content_block_delta", index=block.index, delta={"type": kind, field: change.text})
        case Step.CLOSE:
            return _event("content_block_stop", index=block.index)


def _event(name: str, **fields: Any) -> Event:
    return Event(json.dumps({"type": name, **fields}, ensure_ascii=False, separators=(",", ":")), name)
