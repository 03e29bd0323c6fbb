"""The loop inside the process, turned by hand over a real pipe: leaks are told, faults end it."""

import dataclasses
import logging
import multiprocessing

import pytest
import torch

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine import loop
from multimodel_server.engine.device_runner import DeviceRunner
from multimodel_server.engine.loading import load
from multimodel_server.engine.loop import Engine
from multimodel_server.engine.messages import Generate, RequestFailed, Sampling, Step, decode_from_engine, encode
from multimodel_server.engine.request import Request


@pytest.fixture
def model(tiny_model):
    config = EngineConfig(tiny_model("qwen3_tied_wide_heads").path, kv_size=KvSize(context_len=128))
    return load(config, lambda *_: None)


@pytest.fixture
def engine_and_pipe(model):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield Engine(model, theirs), ours


@pytest.fixture(params=["waits", "launches_ahead"])
def any_engine_and_pipe(model, request):
    """An engine whose steps are computed as they are launched, and one that launches a step behind another."""
    if request.param == "launches_ahead":
        cache = torch.stack([torch.stack(list(layer)) for layer in model.runner.layers])
        model = dataclasses.replace(model, runner=DeviceRunner(model.runner.decoder, cache, 32, 4096))
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield Engine(model, theirs), ours


def test_a_leak_is_logged_once_and_does_not_end_an_idle_engine(engine_and_pipe, caplog, monkeypatch):  # bug 10
    engine, pipe = engine_and_pipe
    monkeypatch.setattr(loop, "HEARTBEAT_SECONDS", 0.01)
    engine.scheduler.blocks.allocate(1)
    with caplog.at_level(logging.ERROR):
        assert engine.drain() is True
        pipe.send_bytes(encode(Generate("next", [1, 2], Sampling(max_tokens=1))))
        while engine.drain() and engine.scheduler.has_work:
            engine.turn()
        assert engine.drain() is True
    assert [record.message for record in caplog.records] == [
        "The KV blocks do not add up in an idle engine: block 1: 0 tables name it, 1 references are counted"
    ]


def test_blocks_are_recounted_once_an_idle_time_and_while_nobody_waits(engine_and_pipe, monkeypatch):
    engine, pipe = engine_and_pipe
    monkeypatch.setattr(loop, "HEARTBEAT_SECONDS", 0.01)
    recounts = []
    monkeypatch.setattr(engine.scheduler, "problems", lambda: recounts.append("again") or [])
    for idle_times in (1, 2):
        pipe.send_bytes(encode(Generate(f"r{idle_times}", [1, 2], Sampling(max_tokens=1))))
        while len(recounts) < idle_times:
            assert engine.drain()
            assert len(recounts) < idle_times or not engine.scheduler.has_work, "a request waited"
            engine.turn()
        assert engine.drain() and engine.drain()
        assert len(recounts) == idle_times


def everything_said(pipe):
    said = []
    while pipe.poll():
        said.append(decode_from_engine(pipe.recv_bytes()))
    return said


def test_a_fault_ends_only_the_request_it_belongs_to(any_engine_and_pipe, monkeypatch):
    engine, pipe = any_engine_and_pipe
    launch = engine.runner.launch

    def fault(chunks):
        if any(chunk.request.request_id == "bad" for chunk in chunks):
            raise ArithmeticError("broken")
        return launch(chunks)

    monkeypatch.setattr(engine.runner, "launch", fault)
    for name, prompt in (("good", [1, 2, 3]), ("bad", [13]), ("other", [4])):
        engine.scheduler.add(Request.of(Generate(name, prompt, Sampling(max_tokens=2))))
    while engine.scheduler.has_work:
        engine.turn()
    engine.turn()
    said = everything_said(pipe)
    failed = [message for message in said if isinstance(message, RequestFailed)]
    assert failed == [RequestFailed("bad", "the model failed: ArithmeticError: broken")]
    ended = {
        tokens.request_id for step in said if isinstance(step, Step) for tokens in step.tokens if tokens.finish_reason
    }
    assert ended == {"good", "other"}
    assert engine.scheduler.blocks.used == 0


def test_fault_after_fault_ends_the_engine(any_engine_and_pipe, monkeypatch):
    engine, pipe = any_engine_and_pipe

    def fault(chunks):
        raise ArithmeticError("broken")

    monkeypatch.setattr(engine.runner, "launch", fault)
    for name in "abc":
        pipe.send_bytes(encode(Generate(name, [1, 2, 3], Sampling(max_tokens=3))))
    with pytest.raises(ArithmeticError, match="broken"):
        engine.run()


def test_a_step_is_one_message_and_only_changes_are_heartbeats(engine_and_pipe):
    engine, pipe = engine_and_pipe
    for name in ("a", "b"):
        engine.scheduler.add(Request.of(Generate(name, [1], Sampling(max_tokens=3))))
    for _ in range(3):
        engine.turn()
    assert [type(message).__name__ for message in everything_said(pipe)] == ["Heartbeat", *["Step"] * 3, "Heartbeat"]


def test_a_long_step_is_seen_to_advance_layer_by_layer(engine_and_pipe, monkeypatch):
    engine, pipe = engine_and_pipe
    monkeypatch.setattr(loop, "HEARTBEAT_SECONDS", 0.0)
    pipe.send_bytes(encode(Generate("a", [1, 2, 3], Sampling(max_tokens=3))))
    assert engine.drain()
    engine.turn()
    beats = [decode_from_engine(pipe.recv_bytes()) for _ in engine.runner.layers]
    assert [beat.running for beat in beats] == [1, 1, 1]


def answers(engine, pipe, message):
    """Return the tokens of one request, and what is said when the engine rests again."""
    pipe.send_bytes(encode(message))
    assert engine.drain()
    engine.turn()
    while engine.scheduler.has_work or engine._pipeline.busy:
        engine.turn()
    said = everything_said(pipe)
    steps = [message for message in said if isinstance(message, Step)]
    assert sum(len(step.queue_seconds) for step in steps) == 1
    return [token for step in steps for tokens in step.tokens for token in tokens.token_ids], said[-1]


def test_what_is_launched_behind_a_stop_token_lands_before_the_engine_rests(any_engine_and_pipe):
    engine, pipe = any_engine_and_pipe
    whole, _ = answers(engine, pipe, Generate("whole", [1, 2, 3], Sampling(max_tokens=6)))
    stopped = Sampling(max_tokens=6, stop_token_ids=frozenset({whole[3]}))
    brought, last = answers(engine, pipe, Generate("stopped", [1, 2, 3], stopped))
    assert brought == whole[:3]
    assert (last.running, last.kv_blocks_used) == (0, 0)
