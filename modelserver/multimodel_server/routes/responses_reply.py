"""Writes an answer as OpenAI's response object, whole or in events."""

import json
from collections.abc import Iterator
from typing import Any

from multimodel_api.errors import ApiError
from multimodel_api.responses import (
    IncompleteDetails,
    InputTokens,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputTokens,
    ReasoningText,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
    Status,
    TextSettings,
)
from multimodel_server.answer import Piece
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.transcript import Event
from multimodel_server.text.blocks import Block, BlockReader, Change, Kind, Step

_PREFIXES = {Kind.REASONING: "rs", Kind.CONTENT: "msg", Kind.CALL: "fc"}


class ResponsesReply:
    """One response."""

    def __init__(self, choices: Choices, body: ResponsesRequest, model: str) -> None:
        self._choices = choices
        self._body = body
        self._model = model
        self._created = choices.identity.created
        self._number = choices.identity.number
        self._reader = BlockReader()
        self._events_sent = 0

    async def whole(self) -> ResponseObject:
        """Return the response."""
        (pieces,) = await self._choices.whole()
        for piece in pieces:
            for part in piece.parts:
                self._reader.feed(part)
        return self._response(_status(pieces[-1].finish_reason))

    def opening(self, index: int) -> list[Event]:  # noqa: ARG002
        """Return the response's start."""
        names = ("response.created", "response.in_progress")
        return [self._event(name, response=self._response("in_progress").model_dump()) for name in names]

    def growth(self, index: int, piece: Piece) -> list[Event]:  # noqa: ARG002
        """Return what happens to the items, and the whole response at its end."""
        changes = [change for part in piece.parts for change in self._reader.feed(part)]
        if piece.finish_reason is None:
            return list(self._of_changes(changes))
        events = list(self._of_changes([*changes, *self._reader.end()]))
        status = _status(piece.finish_reason)
        return [*events, self._event(f"response.{status}", response=self._response(status).model_dump())]

    def closing(self) -> list[Event]:
        """Return nothing: the whole response is the last event."""
        return []

    def failure(self, error: ApiError) -> Event:
        """Return the event that tells of an error."""
        detail = error.detail
        return self._event("error", code=detail.code, message=detail.message, param=detail.param)

    def _of_changes(self, changes: list[Change]) -> Iterator[Event]:
        for change in changes:
            match change.step:
                case Step.OPEN:
                    yield from self._opened(change.block)
                case Step.GROW:
                    yield self._grown(change.block, change.text)
                case Step.CLOSE:
                    yield from self._closed(change.block)

    def _opened(self, block: Block) -> Iterator[Event]:
        empty = Block(block.index, block.kind, block.call_id, block.name)
        item = self._item(empty, "in_progress").model_dump()
        if block.kind is not Kind.CALL:
            item["content"] = []
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind is not Kind.CALL:
            yield self._of_part("response.content_part.added", block, part=_part(empty).model_dump())

    def _grown(self, block: Block, text: str) -> Event:
        match block.kind:
            case Kind.CALL:
                return self._of_item("response.function_call_arguments.delta", block, delta=text)
            case Kind.REASONING:
                return self._of_part("response.reasoning_text.delta", block, delta=text)
            case Kind.CONTENT:
                return self._of_part("response.output_text.delta", block, delta=text, logprobs=[])

    def _closed(self, block: Block) -> Iterator[Event]:
        match block.kind:
            case Kind.CALL:
                name = "response.function_call_arguments.done"
                yield self._of_item(name, block, name=block.name, arguments=block.text)
            case Kind.REASONING:
                yield self._of_part("response.reasoning_text.done", block, text=block.text)
            case Kind.CONTENT:
                yield self._of_part("response.output_text.done", block, text=block.text, logprobs=[])
        if block.kind is not Kind.CALL:
            yield self._of_part("response.content_part.done", block, part=_part(block).model_dump())
        item = self._item(block, "completed").model_dump()
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _of_part(self, kind: str, block: Block, **fields: Any) -> Event:
        return self._of_item(kind, block, content_index=0, **fields)

    def _of_item(self, kind: str, block: Block, /, **fields: Any) -> Event:
        return self._event(kind, item_id=self._item_id(block), output_index=block.index, **fields)

    def _event(self, kind: str, /, **fields: Any) -> Event:
        document = {"type": kind, "sequence_number": self._events_sent, **fields}
        self._events_sent += 1
        return Event(json.dumps(document, ensure_ascii=False, separators=(",", ":")), kind)

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._number}{block.index:02x}"

    def _item(self, block: Block, status: Status) -> OutputItem:
        item_id = self._item_id(block)
        match block.kind:
            case Kind.CALL:
                return OutputCall(
                    id=item_id, status=status, call_id=block.call_id, name=block.name, arguments=block.text
                )
            case Kind.REASONING:
                return OutputReasoning(id=item_id, status=status, content=[ReasoningText(text=block.text)])
            case Kind.CONTENT:
                return OutputMessage(id=item_id, status=status, content=[OutputText(text=block.text)])

    def _response(self, status: Status) -> ResponseObject:
        body, is_done = self._body, status != "in_progress"
        return ResponseObject(
            id=f"resp_{self._number}",
            created_at=self._created,
            status=status,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=self._model,
            output=[self._item(block, "completed") for block in self._reader.blocks] if is_done else [],
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=body.temperature,
            text=body.text or TextSettings(),
            tool_choice=body.tool_choice,
            tools=body.tools,
            top_p=body.top_p,
            truncation=body.truncation or "disabled",
            usage=self._usage if is_done else None,
        )

    @property
    def _usage(self) -> ResponseUsage:
        usage = self._choices.usage
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        reasoning = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokens(cached_tokens=cached),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokens(reasoning_tokens=reasoning),
            total_tokens=usage.total_tokens,
        )


def _part(block: Block) -> OutputText | ReasoningText:
    return ReasoningText(text=block.text) if block.kind is Kind.REASONING else OutputText(text=block.text)


def _status(finish_reason: str | None) -> Status:
    return "incomplete" if finish_reason == "length" else "completed"
