"""Asks others beside the reconciliation, which never waits: it is told what is known, and woken for what is not."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from multimodel_operator.objects import Key

Question = TypeVar("Question")
Answer = TypeVar("Answer")

ASKERS = 8
MAX_ANSWERS = 4096


class Inquiries(Generic[Question, Answer]):
    """Answers that are kept for a while; `ask` never raises, and `changed` is called where an answer is news."""

    def __init__(
        self,
        ask: Callable[[Question], Awaitable[Answer]],
        changed: Callable[[Key], None],
        keep_seconds: Callable[[Answer], float],
    ) -> None:
        self._ask = ask
        self._changed = changed
        self._keep_seconds = keep_seconds
        self._answers: OrderedDict[Question, tuple[Answer, float]] = OrderedDict()
        self._waiting: dict[Question, set[Key]] = {}
        self._queue: asyncio.Queue[Question] = asyncio.Queue()

    def answer(self, question: Question, key: Key) -> Answer | None:
        """Return the last answer, None before the first; `key` is who wants to know of the next."""
        known = self._answers.get(question)
        if known is None or known[1] < asyncio.get_running_loop().time():
            if question not in self._waiting:
                self._queue.put_nowait(question)
            self._waiting.setdefault(question, set()).add(key)
        return known[0] if known else None

    async def run(self) -> None:
        """Ask until cancelled."""
        self._queue = asyncio.Queue()
        for question in self._waiting:
            self._queue.put_nowait(question)
        async with asyncio.TaskGroup() as askers:
            for _ in range(ASKERS):
                askers.create_task(self._asker())

    async def _asker(self) -> None:
        while True:
            question = await self._queue.get()
            answer = await self._ask(question)
            known = self._answers.pop(question, None)
            until = asyncio.get_running_loop().time() + self._keep_seconds(answer)
            self._answers[question] = (answer, until)
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
            asked = self._waiting.pop(question)
            if known is None or known[0] != answer:
                for key in asked:
                    self._changed(key)
