"""What an answer is made of, as it comes: reasoning, content, and calls of tools."""

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """What the model says."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool is called; its arguments follow."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Part: TypeAlias = Reasoning | Content | CallBegin | CallArguments


@dataclass(slots=True)
class Call:
    """A whole call."""

    call_id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Reply:
    """A whole answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)


def gathered(parts: list[Part]) -> Reply:
    """Return the answer that the parts make."""
    reply = Reply(
        reasoning="".join(part.text for part in parts if isinstance(part, Reasoning)),
        content="".join(part.text for part in parts if isinstance(part, Content)),
        calls=[Call(part.call_id, part.name) for part in parts if isinstance(part, CallBegin)],
    )
    for place, call in enumerate(reply.calls):
        call.arguments = "".join(part.text for part in parts if isinstance(part, CallArguments) and part.index == place)
    return reply
