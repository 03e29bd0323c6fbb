"""An engine that sleeps gives its memory back, and answers as before when it wakes."""

import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine.batch import build_batch
from multimodel_server.engine.device_runner import DeviceRunner
from multimodel_server.engine.loading import load
from multimodel_server.engine.loop import Engine
from multimodel_server.engine.messages import (
    Cancel,
    Generate,
    Grammar,
    Sampling,
    Sleep,
    Slept,
    Step,
    Stop,
    Wake,
    Woken,
    decode_from_engine,
    encode,
)
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk
from multimodel_server.errors import LoadError

MODELS = Path(__file__).parents[3] / "examples" / "models"
PROMPT = list(range(40))


class Piped:
    """An engine turned by hand, and the other end of its pipe."""

    def __init__(self, path: Path, theirs, ours, *, ahead=False, **settings) -> None:
        self.model = load(EngineConfig(path, kv_size=KvSize(context_len=512), **settings), lambda *_: None)
        if ahead:
            runner = DeviceRunner(self.model.runner.decoder, self.model.memory.cache.tensor, 4, 64)
            self.model = replace(self.model, runner=runner)
        self.engine = Engine(self.model, theirs)
        self.pipe = ours

    def say(self, *messages):
        """Send messages, turn until there is nothing to do, and return what the engine said but for heartbeats."""
        for message in messages:
            self.pipe.send_bytes(encode(message))
        said = []
        while True:
            self.engine.drain()
            self.engine.turn()
            while self.pipe.poll():
                said.append(decode_from_engine(self.pipe.recv_bytes()))
            wanted = self.engine._sleep_wanted or self.engine.grammars.pending
            if not (wanted or self.engine.scheduler.has_work or self.pipe.poll()):
                return [message for message in said if isinstance(message, Step | Slept | Woken)]

    def answer(self, name="a", **sampling):
        """Return an answer's tokens, how many of the prompt's were cached, and what else the engine said."""
        said = self.say(Generate(name, PROMPT, Sampling(max_tokens=6, **sampling)))
        tokens = [tokens for step in said if isinstance(step, Step) for tokens in step.tokens]
        ids = [token for one in tokens for token in one.token_ids]
        return ids, tokens[0].cached_tokens, [message for message in said if not isinstance(message, Step)]

    def logits(self):
        """Return those of a whole text, in blocks of the cache that nobody uses."""
        request = Request("logits", PROMPT, len(PROMPT), Sampling(max_tokens=1), block_table=[3, 2, 1])
        batch = build_batch([Chunk(request, 0, len(PROMPT), samples=True)], 16, torch.device("cpu"))
        with torch.inference_mode():
            decoder, layers = self.engine.runner.decoder, self.engine.runner.layers
            return decoder.logits(decoder(batch.token_ids, batch.positions, layers, batch.layout))

    @property
    def is_empty(self):
        weights = any(weight.any() for weight in self.engine.runner.decoder.parameters())
        return not weights and not any(part.any() for layer in self.engine.runner.layers for part in layer)


@pytest.fixture
def piped(tiny_model, tmp_path):
    shutil.copytree(tiny_model("qwen3_untied_biased").path, tmp_path, dirs_exist_ok=True)
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        made = Piped(tmp_path, theirs, ours)
        yield made
        made.engine.grammars.close()


def test_logits_after_sleep_equal_those_before_to_the_last_bit(piped):  # bug 36
    before = piped.logits()
    assert piped.say(Sleep()) == [Slept()]
    assert piped.is_empty
    assert piped.say(Wake()) == [Woken()]
    assert torch.equal(piped.logits(), before)


def test_kept_weights_need_no_files(piped, tmp_path):  # bug 37
    before, _, _ = piped.answer()
    piped.model.memory.arena.keep()
    piped.say(Sleep())
    (tmp_path / "model.safetensors").unlink()
    assert piped.is_empty
    assert piped.answer("b") == (before, 0, [Woken()])


def test_weights_that_may_not_be_kept_are_read_again(piped, tmp_path):
    piped.model.memory.arena.keep()
    piped.say(Sleep(keep_weights=False))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="only safetensors files are read"):
        piped.say(Wake())


def test_a_request_wakes_the_engine_and_finds_no_prefix_from_before(piped):  # bug 17
    before, cached, _ = piped.answer("a")
    assert cached == 0
    assert piped.answer("b")[:2] == (before, 32)
    piped.say(Sleep())
    assert piped.answer("c") == (before, 0, [Woken()])
    assert piped.answer("d") == (before, 32, [])


def test_a_grammar_wakes_the_engine_when_it_is_ready():
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        piped = Piped(MODELS / "scribe", theirs, ours)
        piped.say(Sleep())
        tokens, _, said = piped.answer(grammar=Grammar("regex", "[0-9]+"))
        piped.engine.grammars.close()
    assert (said, len(tokens)) == ([Woken()], 6)


def test_what_runs_ends_before_the_engine_sleeps(piped):
    said = piped.say(Generate("a", PROMPT, Sampling(max_tokens=6)), Sleep())
    assert [type(message) for message in said] == [Step] * 6 + [Slept]
    assert said[-2].tokens[0].finish_reason == "length"


def test_a_cancelled_request_does_not_keep_the_engine_awake(piped):
    request = Generate("a", PROMPT, Sampling(max_tokens=400))
    assert piped.say(request, Cancel("a"), Sleep())[-1] == Slept()
    assert piped.is_empty


def test_a_sleeping_engine_says_again_that_it_sleeps_and_can_be_stopped(piped):
    assert piped.say(Sleep(), Sleep()) == [Slept()]
    assert piped.say(Sleep()) == [Slept()]
    assert piped.say(Wake()) == [Woken()]
    assert piped.say(Wake()) == [Woken()]
    piped.say(Sleep())
    piped.pipe.send_bytes(encode(Stop()))
    assert piped.engine.drain() is False


def test_sleep_without_paging_forgets_whole_texts(tiny_model):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        piped = Piped(tiny_model("qwen3_untied_biased").path, theirs, ours, paged_attention="off")
        before, _, _ = piped.answer("a")
        piped.say(Sleep())
        assert piped.answer("b") == (before, 0, [Woken()])
        assert piped.answer("c") == (before, 32, [])
        assert piped.engine.scheduler.problems() == []


def test_sleep_and_wake_many_times(piped):
    before = piped.logits()
    for _ in range(20):
        piped.say(Sleep())
        assert piped.is_empty
        piped.say(Wake())
        assert torch.equal(piped.logits(), before)


def test_steps_that_were_laid_out_once_are_good_after_sleep(tiny_model):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        piped = Piped(tiny_model("qwen3_untied_biased").path, theirs, ours, ahead=True)
        before, _, _ = piped.answer("a")
        request = Generate("b", PROMPT, Sampling(max_tokens=400))
        assert piped.say(request, Cancel("b"), Sleep())[-1] == Slept()
        assert piped.is_empty
        assert piped.answer("c") == (before, 0, [Woken()])
