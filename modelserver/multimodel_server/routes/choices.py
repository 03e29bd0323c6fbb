"""Several answers to one request, made at the same time: `n` choices, or the continuations of a list of prompts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from multimodel_api.openai import CachedTokens, CompletionTokens, Usage
from multimodel_server.answer import Answer, AnswerPlan, Piece
from multimodel_server.answer_state import AnswerState, Identity, prompt_digest
from multimodel_server.metrics import Metrics
from multimodel_server.service import LoadedModel


class Choices:
    """The answers to plans, `each` of them; the first plan's come first. Iterate `pieces` once."""

    def __init__(
        self, model: LoadedModel, metrics: Metrics, plans: list[AnswerPlan], each: int, identity: Identity
    ) -> None:
        self._plans = plans
        self._each = each
        self.identity = identity
        self.answers = [
            Answer(model, metrics, plan, f"{identity.number}-{index}", index) for plan in plans for index in range(each)
        ]

    @property
    def is_resumed(self) -> bool:
        """Whether the one answer was begun elsewhere."""
        return self._plans[0].beginning is not None

    @property
    def state(self) -> AnswerState:
        """What another server needs to go on with the one answer, known with its first piece."""
        (answer,), (plan,) = self.answers, self._plans
        return AnswerState(
            number=self.identity.number,
            created=self.identity.created,
            seed=answer.sampling.seed,
            max_tokens=answer.sampling.max_tokens,
            cached_tokens=answer.cached_tokens,
            prompt=prompt_digest(plan.prompt_ids),
        )

    @property
    def usage(self) -> Usage:
        """The tokens counted so far; a prompt counts once, however many answers it has."""
        prompt = sum(len(plan.prompt_ids) for plan in self._plans)
        cached = sum(answer.cached_tokens for answer in self.answers[:: self._each])
        completion = sum(answer.completion_tokens for answer in self.answers)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=CachedTokens(cached_tokens=cached),
            completion_tokens_details=CompletionTokens(
                reasoning_tokens=sum(answer.reasoning_tokens for answer in self.answers)
            ),
        )

    async def whole(self) -> list[list[Piece]]:
        """Return the pieces of every answer; raises `ApiError`."""
        found: list[list[Piece]] = [[] for _ in self.answers]
        async with aclosing(self.pieces()) as pieces:
            async for index, grown in pieces:
                found[index] += grown
        return found

    async def pieces(self) -> AsyncGenerator[tuple[int, list[Piece]], None]:
        """Yield the answers' pieces as they come, those that came at once with their answer's index.

        Leaving early cancels all.

        Raises:
            ApiError: one of the answers failed; the others are cancelled.
        """
        if len(self.answers) == 1:  # By far the most common, and quicker without a task of its own.
            async with aclosing(self.answers[0].pieces()) as pieces:
                async for grown in pieces:
                    yield 0, grown
            return
        queue: asyncio.Queue[tuple[int, list[Piece]] | asyncio.Task[None]] = asyncio.Queue()
        tasks = [asyncio.create_task(_pump(queue, place, answer)) for place, answer in enumerate(self.answers)]
        for task in tasks:
            task.add_done_callback(queue.put_nowait)
        running = len(tasks)
        try:
            while running:
                event = await queue.get()
                if isinstance(event, asyncio.Task):
                    event.result()
                    running -= 1
                else:
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # Those that failed too are no news any more.


async def _pump(queue: asyncio.Queue[tuple[int, list[Piece]] | asyncio.Task[None]], place: int, answer: Answer) -> None:
    async with aclosing(answer.pieces()) as pieces:
        async for grown in pieces:
            queue.put_nowait((place, grown))
