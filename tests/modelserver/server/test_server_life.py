"""A real server's life: deaths of its engine, clients that leave, being told to stop, loads that fail."""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from multimodel_api.failures import FailureReason, LoadFailure

HELLO = [{"role": "user", "content": "hello world"}]
LONG = {"messages": HELLO, "max_tokens": 1900}
CHAT = "/v1/chat/completions"


def chat(server: Any, **fields: Any) -> str:
    with server.openai() as client:
        completion = client.chat.completions.create(
            **{"model": "default", "messages": HELLO, "max_tokens": 8, **fields}
        )
    return completion.choices[0].message.content


def running(server: Any) -> float:
    return server.metric("multimodel_requests_running")


@pytest.fixture(scope="module")
def victim(tiny_model: Path, launch_server: Callable[..., Any]) -> Iterator[Any]:
    """A server whose engine is killed again and again."""
    server = launch_server("--model", tiny_model, "--heartbeat-seconds=3")
    yield server.wait_until_ready()
    server.stop()


def reboot_messages(messages: list[str]) -> list[str]:
    told = [message for message in messages if re.search("[dD]ummy run|[eE]ngine", message)]
    return [re.sub(r"\d+\.\d+s", "{s}s", message) for message in told]


def test_an_idle_engine_that_is_killed_is_rebooted_and_the_next_request_answered(victim: Any, tiny_model: Path) -> None:
    before = chat(victim)
    mark, engine = len(victim.messages), victim.engine()
    engine.kill()
    assert chat(victim) == before
    victim.wait_for_line("Successfully rebooted", after=mark)
    assert reboot_messages(victim.messages[mark:]) == [
        f"Engine {tiny_model} is dead, rebooting",
        "Beginning dummy run.",
        "Dummy run completed in {s}s.",
        f"Successfully rebooted engine {tiny_model}",
    ]
    assert victim.engine().pid != engine.pid
    assert victim.metric("multimodel_engine_reboots_total") >= 1


def test_readiness_is_off_while_the_engine_is_rebooted(victim: Any) -> None:
    victim.wait_until_ready()
    mark = len(victim.messages)
    with victim.http() as client:
        victim.engine().kill()
        victim.wait_for_line("is dead, rebooting", after=mark)
        response = client.get("/health/ready")
        assert (response.status_code, response.json()["phase"]) == (503, "starting")
        assert client.get("/health/live").status_code == 200
        assert client.get("/v1/models").json()["data"][0]["status"] == "reloading"
    victim.wait_until_ready()


def test_a_stream_says_that_its_engine_died_and_waiting_requests_go_on(victim: Any) -> None:
    victim.wait_until_ready()
    answers: list[str] = []
    with victim.http() as client, client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
        lines = response.iter_lines()
        for _ in range(10):
            next(lines)
        victim.engine().kill()
        asker = threading.Thread(target=lambda: answers.append(chat(victim)))
        asker.start()
        events = [line.removeprefix("data: ") for line in lines if line]
    error = json.loads(events[-1])["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_crashed")
    assert "was killed by SIGKILL" in error["message"]
    assert "[DONE]" not in events
    asker.join(60)
    assert answers == [chat(victim)]


def test_a_whole_answer_that_was_begun_ends_with_an_error(victim: Any, until: Callable[..., None]) -> None:
    victim.wait_until_ready()
    generated = victim.metric("multimodel_generated_tokens_total")
    errors: list[openai.APIError] = []

    def ask() -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            chat(victim, max_tokens=1900)
        errors.append(caught.value)

    asker = threading.Thread(target=ask)
    asker.start()
    until(lambda: victim.metric("multimodel_generated_tokens_total") > generated, 20)
    victim.engine().kill()
    asker.join(60)
    assert errors[0].code == "engine_crashed"


def test_a_wedged_engine_is_replaced_and_the_request_answered(victim: Any) -> None:
    victim.wait_until_ready()
    before, mark = chat(victim), len(victim.messages)
    victim.engine().suspend()
    assert chat(victim) == before
    assert victim.wait_for_line("has been silent for", after=mark)


def test_the_engine_does_not_outlive_a_killed_server(victim: Any) -> None:
    victim.wait_until_ready()
    engine = victim.engine()
    victim.process.kill()
    psutil.wait_procs([engine], timeout=10)
    assert not engine.is_running()


def test_clients_that_leave_free_the_engine(server: Any, until: Callable[..., None]) -> None:
    def cancelled() -> float:
        return server.metric("multimodel_requests_completed_total", "cancelled")

    before = cancelled()
    with server.http() as client, client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
        next(response.iter_lines())
    until(lambda: cancelled() == before + 1, 20)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}{CHAT}", json=LONG, timeout=0.3)
    until(lambda: cancelled() == before + 2, 20)
    until(lambda: running(server) == 0, 20)
    assert server.metric("multimodel_kv_blocks_used") == 0
    assert "Traceback" not in server.log


def test_a_drain_finishes_streams_and_refuses_new_work(tiny_model: Path, start_server: Callable[..., Any]) -> None:
    server = start_server("--model", tiny_model, "--drain-seconds=90").wait_until_ready()
    with server.http() as client, client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        engine = server.engine()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("Stopping; running requests have 90 s to end")
        with server.http() as other:
            refused = other.post(CHAT, json=LONG)
            assert other.get("/health/ready").status_code == 503
            assert other.get("/health/live").status_code == 200
        events = [line.removeprefix("data: ") for line in lines if line]
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["connection"] == "close"
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert server.wait() == 0
    assert not engine.is_running()


def test_a_drain_ends_when_its_time_is_over(tiny_model: Path, start_server: Callable[..., Any]) -> None:
    server = start_server("--model", tiny_model, "--drain-seconds=0.2").wait_until_ready()
    with server.http() as client, client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        events = [line.removeprefix("data: ") for line in lines if line]
    assert json.loads(events[-1])["error"]["code"] == "engine_unavailable"
    assert server.wait() == 0


def test_before_it_is_ready_it_says_how_far_it_is(tiny_model: Path, start_server: Callable[..., Any]) -> None:
    server = start_server("--model", tiny_model)
    with server.http() as client:
        ready, refused = client.get("/health/ready"), client.post(CHAT, json=LONG)
        progress, live = client.get("/health/progress").json(), client.get("/health/live")
    assert (ready.status_code, refused.status_code, live.status_code) == (503, 503, 200)
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["code"] == "model_loading"
    assert progress["phase"] == ready.json()["phase"] == "starting"
    children = psutil.Process(server.process.pid).children(recursive=True)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert time.monotonic() - began < 5
    psutil.wait_procs(children, timeout=5)
    assert not [child for child in children if child.is_running()]


def failed(start_server: Callable[..., Any], tmp_path: Path, *arguments: object) -> LoadFailure:
    server = start_server(*arguments, "--failure-file", tmp_path / "failure")
    assert server.wait(60) == 1, server.log
    failure = LoadFailure.parse((tmp_path / "failure").read_text())
    assert failure is not None
    assert len([line for line in server.lines if f"Cannot serve {arguments[1]}: {failure}" in line]) == 1, server.log
    return failure


def test_a_model_that_is_not_there(start_server: Callable[..., Any], tmp_path: Path) -> None:
    failure = failed(start_server, tmp_path, "--model", "/nowhere/model")
    assert failure.reason is FailureReason.MODEL_NOT_FOUND


def test_quantisation_is_refused(start_server: Callable[..., Any], tmp_path: Path, tiny_model: Path) -> None:
    failure = failed(start_server, tmp_path, "--model", tiny_model, "--isq=Q4K")
    assert failure.reason is FailureReason.BAD_QUANTIZATION
    assert "inSituQuant" in failure.message


def test_broken_weights_name_the_file(start_server: Callable[..., Any], tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    failure = failed(start_server, tmp_path, "--model", folder)
    assert failure.reason is FailureReason.BAD_WEIGHTS
    assert "model.safetensors" in failure.message


def test_a_port_that_is_taken(start_server: Callable[..., Any], tmp_path: Path, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failure = failed(start_server, tmp_path, "--model", tiny_model, f"--port={port}")
    assert failure.reason is FailureReason.BAD_CONFIGURATION
    assert str(port) in failure.message


def test_a_model_without_chat_template_completes_only(
    start_server: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    server = start_server("--model", folder).wait_until_ready()
    with server.openai() as client:
        with pytest.raises(openai.BadRequestError, match="/v1/completions, or set chatTemplate"):
            client.chat.completions.create(model="default", messages=HELLO)
        assert client.completions.create(model="default", prompt="hello", max_tokens=2).choices[0].text
