"""An answer's parts as blocks that open, grow and close one after the other, as some APIs show them."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from multimodel_server.text.parts import CallArguments, CallBegin, Content, Part, Reasoning


class Kind(Enum):
    """What a block holds."""

    REASONING = auto()
    CONTENT = auto()
    CALL = auto()


@dataclass(slots=True)
class Block:
    """A stretch of one kind; a call's text is its arguments."""

    index: int
    kind: Kind
    call_id: str = ""
    name: str = ""
    text: str = ""


class Step(Enum):
    """What happens to a block."""

    OPEN = auto()
    GROW = auto()
    CLOSE = auto()


class Change(NamedTuple):
    """A step of a block; only growth has text."""

    step: Step
    block: Block
    text: str = ""


class BlockReader:
    """Sorts parts into blocks, of which only the last is open."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def feed(self, part: Part) -> list[Change]:
        """Return what a part changes."""
        match part:
            case CallBegin():
                return self._opened(Kind.CALL, part.call_id, part.name)
            case CallArguments():
                return self._grown([], part.text)
            case Reasoning() | Content():
                kind = Kind.REASONING if isinstance(part, Reasoning) else Kind.CONTENT
                is_open = bool(self.blocks) and self.blocks[-1].kind is kind
                return self._grown([] if is_open else self._opened(kind), part.text)

    def end(self) -> list[Change]:
        """Return what the answer's end changes."""
        return [Change(Step.CLOSE, self.blocks[-1])] if self.blocks else []

    def _opened(self, kind: Kind, call_id: str = "", name: str = "") -> list[Change]:
        closed = self.end()
        block = Block(len(self.blocks), kind, call_id, name)
        self.blocks.append(block)
        return [*closed, Change(Step.OPEN, block)]

    def _grown(self, before: list[Change], text: str) -> list[Change]:
        block = self.blocks[-1]
        block.text += text
        return [*before, Change(Step.GROW, block, text)]
