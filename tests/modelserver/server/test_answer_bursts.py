"""Tokens that came while a reader was busy are read together, and say the same as one by one."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models

from multimodel_api.errors import ApiError
from multimodel_server.answer import Answer, AnswerPlan
from multimodel_server.engine.messages import Generate, Sampling, Tokens
from multimodel_server.errors import EngineDiedError
from multimodel_server.metrics import Metrics
from multimodel_server.supervisor import Generation
from multimodel_server.text.reply import ReplyReader
from multimodel_server.text.tokenizer import TextTokenizer, TokenizerSettings

LETTERS = "abcdefgh"


@pytest.fixture
def tokenizer():
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(LETTERS)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return TextTokenizer(tokenizer, TokenizerSettings())


@pytest.fixture
def generation():
    return Generation(Generate("r", [0], Sampling(max_tokens=8)))


@pytest.fixture
def answer(tokenizer, generation):
    """Return an answer that reads the generation, up to a stop string."""

    @contextmanager
    def running(*_, **__):
        yield generation

    model = SimpleNamespace(supervisor=SimpleNamespace(generation=running), text=SimpleNamespace(tokenizer=tokenizer))

    def make(*stops):
        plan = AnswerPlan([0], Sampling(max_tokens=8), lambda _: ReplyReader(list(stops)))
        return Answer(model, Metrics("m"), plan, "a")

    return make


def said(text):
    """Return what an engine tells of a text, token by token."""
    ids = [LETTERS.index(letter) for letter in text]
    return [Tokens("r", [token], "length" if place == len(ids) else None) for place, token in enumerate(ids, start=1)]


async def test_what_came_meanwhile_is_read_together(generation, answer):
    for tokens in said("abcd"):
        generation.events.put_nowait(tokens)
    reading = answer()
    bursts = [[piece.text for piece in pieces] async for pieces in reading.pieces()]
    assert bursts == [["a", "b", "c", "d"]]
    assert reading.completion_tokens == 4


async def test_what_comes_later_is_not_waited_for(generation, answer):
    first, second, *others = said("abcd")
    generation.events.put_nowait(first)
    generation.events.put_nowait(second)
    bursts = []
    async for pieces in answer().pieces():
        bursts.append([piece.text for piece in pieces])
        for tokens in others:
            generation.events.put_nowait(tokens)
        others = []
    assert bursts == [["a", "b"], ["c", "d"]]


async def test_nothing_is_read_or_counted_behind_a_stop_string(generation, answer):
    for tokens in said("abcdef"):
        generation.events.put_nowait(tokens)
    reading = answer("cd")
    pieces = [piece async for burst in reading.pieces() for piece in burst]
    assert "".join(piece.text for piece in pieces) == "ab"
    assert (pieces[-1].finish_reason, pieces[-1].stopped_by) == ("stop", "cd")
    assert reading.completion_tokens == 4


async def test_a_failure_comes_after_the_tokens_before_it(generation, answer):
    for event in [*said("abc")[:2], EngineDiedError("The engine died.")]:
        generation.events.put_nowait(event)
    texts = []
    with pytest.raises(ApiError) as raised:
        async for pieces in answer().pieces():
            texts += [piece.text for piece in pieces]
    assert texts == ["a", "b"]
    assert raised.value.body.error.code == "engine_crashed"
