"""Writes an answer as Anthropic's message, whole or in events."""

import json
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
from multimodel_server.routes.transcript import Event
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
        self._id = f"msg_{choices.identity.number}"
        self._model = model
        self._reader = BlockReader()

    async def whole(self) -> MessagesAnswer:
        """Return the message."""
        (pieces,) = await self._choices.whole()
        for piece in pieces:
            for part in piece.parts:
                self._reader.feed(part)
        return MessagesAnswer(
            id=self._id,
            model=self._model,
            content=[_whole(block) for block in self._reader.blocks],
            stop_reason=_stop_reason(pieces[-1]),
            stop_sequence=pieces[-1].stopped_by,
            usage=self._usage,
        )

    def opening(self, index: int) -> list[Event]:  # noqa: ARG002
        """Return the message's start."""
        message = MessagesAnswer(id=self._id, model=self._model, usage=self._usage)
        return [_event("message_start", message=message.model_dump()), _event("ping")]

    def growth(self, index: int, piece: Piece) -> list[Event]:  # noqa: ARG002
        """Return what happens to the blocks, and why the message stops."""
        changes = [change for part in piece.parts for change in self._reader.feed(part)]
        if piece.finish_reason is None:
            return [_block_event(change) for change in changes]
        return [*map(_block_event, [*changes, *self._reader.end()]), self._delta(piece)]

    def closing(self) -> list[Event]:
        """Return the message's end."""
        return [_event("message_stop")]

    def failure(self, error: ApiError) -> Event:
        """Return the event that tells of an error."""
        return Event(messages_error(error).model_dump_json(), "error")

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
