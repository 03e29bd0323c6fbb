"""The loop inside the process, turned by hand over a real pipe: leaks are told, faults end it."""

import logging
import multiprocessing

import pytest

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine import loop
from multimodel_server.engine.loading import load
from multimodel_server.engine.loop import Engine
from multimodel_server.engine.messages import Generate, Sampling, Stop, decode_from_engine, encode


@pytest.fixture
def engine_and_pipe(tiny_model):
    ours, theirs = multiprocessing.Pipe()
    config = EngineConfig(tiny_model("qwen3_tied_wide_heads").path, kv_size=KvSize(context_len=128))
    with ours, theirs:
        yield Engine(load(config, lambda *_: None), theirs), ours


def test_a_leak_is_logged_once_and_does_not_end_an_idle_engine(engine_and_pipe, caplog):  # bug 10
    engine, pipe = engine_and_pipe
    engine.scheduler.blocks.allocate(1)
    pipe.send_bytes(encode(Stop()))
    with caplog.at_level(logging.ERROR):
        assert engine.drain() is False
        pipe.send_bytes(encode(Stop()))
        assert engine.drain() is False
    assert [record.message for record in caplog.records] == [
        "The KV blocks do not add up in an idle engine: block 1: 0 tables name it, 1 references are counted"
    ]


def test_a_fault_in_the_model_ends_the_loop(engine_and_pipe, monkeypatch):
    engine, pipe = engine_and_pipe

    def fault(batch):
        raise ArithmeticError("broken")

    monkeypatch.setattr(engine.runner, "step", fault)
    pipe.send_bytes(encode(Generate("a", [1, 2, 3], Sampling(max_tokens=3))))
    with pytest.raises(ArithmeticError, match="broken"):
        engine.run()


def test_every_step_says_that_the_loop_turns(engine_and_pipe):
    engine, pipe = engine_and_pipe
    pipe.send_bytes(encode(Generate("a", list(range(20)), Sampling(max_tokens=3))))
    for _ in range(3):
        assert engine.drain()
        chunks = engine.scheduler.schedule()
        engine.postprocess(chunks, engine.compute(chunks))
        engine.heartbeat()
    said = []
    while pipe.poll():
        said.append(decode_from_engine(pipe.recv_bytes()))
    assert [type(message).__name__ for message in said] == ["Tokens", "Heartbeat"] * 3
    assert [message.kv_blocks_used for message in said[1::2]] == [2, 2, 0]
    assert said[4].finish_reason == "length"


def test_a_long_step_is_seen_to_advance_layer_by_layer(engine_and_pipe, monkeypatch):
    engine, pipe = engine_and_pipe
    monkeypatch.setattr(loop, "HEARTBEAT_SECONDS", 0.0)
    pipe.send_bytes(encode(Generate("a", [1, 2, 3], Sampling(max_tokens=3))))
    assert engine.drain()
    engine.compute(engine.scheduler.schedule())
    beats = [decode_from_engine(pipe.recv_bytes()) for _ in engine.runner.layers]
    assert [beat.running for beat in beats] == [1, 1, 1]
    assert not pipe.poll()
