"""The engine as its supervisor meets it: a spawned process at the end of a pipe."""

import contextlib
import multiprocessing
import shutil
import time

import pytest

from multimodel_api.failures import FailureReason
from multimodel_api.progress import LoadPhase
from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine import loop
from multimodel_server.engine.messages import (
    Cancel,
    Generate,
    Heartbeat,
    LoadFailed,
    Loading,
    Ready,
    RequestFailed,
    Sampling,
    Step,
    Stop,
    decode_from_engine,
    encode,
)

PATIENCE = 60.0


class EngineClient:
    """The other end of an engine's pipe."""

    def __init__(self, config):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=loop.main, args=(config, theirs))
        self.process.start()
        theirs.close()

    def send(self, message):
        self.connection.send_bytes(encode(message))

    def receive(self):
        assert self.connection.poll(PATIENCE), "the engine says nothing"
        return decode_from_engine(self.connection.recv_bytes())

    def receive_until(self, is_last):
        messages = [self.receive()]
        while not is_last(messages[-1]):
            messages.append(self.receive())
        return messages

    def answers(self, count):
        """Return the token ids and finish reason of each request until `count` of them ended."""
        texts, ended = {}, {}
        while len(ended) < count:
            message = self.receive()
            for tokens in message.tokens if isinstance(message, Step) else ():
                texts.setdefault(tokens.request_id, []).extend(tokens.token_ids)
                if tokens.finish_reason:
                    ended[tokens.request_id] = tokens.finish_reason
        return {name: (texts[name], reason) for name, reason in ended.items()}

    def end(self):
        self.process.kill()
        self.process.join()
        self.connection.close()


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with contextlib.ExitStack() as started:

        def start(path, **settings):
            client = EngineClient(EngineConfig(path, **settings))
            started.callback(client.end)
            return client

        yield start


def test_a_life(start, tiny_model, prompts):
    """Load, answer two at once, refuse, cancel, idle, stop."""
    tiny = tiny_model("qwen3_tied_wide_heads")
    engine = start(tiny.path, kv_size=KvSize(context_len=128))

    *progress, ready = engine.receive_until(lambda message: isinstance(message, Ready))
    assert all(isinstance(message, Loading) and message.phase is LoadPhase.READING_WEIGHTS for message in progress)
    assert progress[-1].bytes_done == progress[-1].bytes_total > 0
    assert ready == Ready(max_request_tokens=128, kv_blocks=8, block_size=16)

    stop_token = tiny.greedy(prompts[3], 9)[-1]
    engine.send(Generate("long", prompts[5], Sampling(max_tokens=30)))
    engine.send(Generate("stopped", prompts[3], Sampling(max_tokens=30, stop_token_ids=frozenset({stop_token}))))
    expected = tiny.greedy(prompts[3], 30)
    assert engine.answers(2) == {
        "long": (tiny.greedy(prompts[5], 30), "length"),
        "stopped": (expected[: expected.index(stop_token)], "stop"),
    }

    engine.send(Generate("huge", prompts[5], Sampling(max_tokens=89)))
    [*_, refused] = engine.receive_until(lambda message: isinstance(message, RequestFailed))
    assert refused == RequestFailed(
        "huge", "prompt and max_tokens make 129 tokens; at most 128 fit: ask for at most 88", invalid=True
    )

    engine.send(Generate("cancelled", prompts[1], Sampling(max_tokens=120)))
    engine.receive_until(lambda message: isinstance(message, Step))
    engine.send(Cancel("cancelled"))
    *_, idle = engine.receive_until(lambda message: isinstance(message, Heartbeat) and not message.running)
    looked_up = sum(len(prompts[index]) for index in (5, 3, 1))
    assert idle == Heartbeat(0, 0, kv_blocks_used=0, kv_blocks_total=8, preemptions=0, prefix_lookups=looked_up)

    began = time.monotonic()
    assert [engine.receive(), engine.receive()] == [idle, idle]
    assert time.monotonic() - began < 5.0

    engine.process.terminate()  # a signal to the whole group: the HTTP process decides when work is done
    engine.send(Generate("after", prompts[0], Sampling(max_tokens=5)))
    assert engine.answers(1) == {"after": (tiny.greedy(prompts[0], 5), "length")}

    engine.send(Stop())
    engine.process.join(PATIENCE)
    assert engine.process.exitcode == 0


def test_it_ends_when_its_supervisor_is_gone(start, tiny_model, prompts):
    engine = start(tiny_model("qwen3_tied_wide_heads").path)
    engine.receive_until(lambda message: isinstance(message, Ready))
    engine.send(Generate("orphan", prompts[0], Sampling(max_tokens=200)))
    engine.connection.close()
    engine.process.join(PATIENCE)
    assert engine.process.exitcode == 0


def test_a_load_failure_is_told_and_ends_the_process(start, tiny_model, tmp_path):
    shutil.copy(tiny_model("qwen3_tied_wide_heads").path / "config.json", tmp_path)
    engine = start(tmp_path)
    [failed] = engine.receive_until(lambda message: isinstance(message, LoadFailed))
    assert failed.reason == FailureReason.BAD_WEIGHTS
    assert str(tmp_path) in failed.message
    engine.process.join(PATIENCE)
    assert engine.process.exitcode == 1


def test_what_nobody_expected_while_loading_is_told_too(start):
    engine = start(None)
    [failed] = engine.receive_until(lambda message: isinstance(message, LoadFailed))
    assert failed.reason == FailureReason.ENGINE_CRASHED
    assert failed.message.startswith("TypeError: ")
    engine.process.join(PATIENCE)
    assert engine.process.exitcode == 1
