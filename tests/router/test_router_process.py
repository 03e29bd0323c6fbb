"""The router as a person starts it, with the real model server: loads, signals, kill -9, and start-up mistakes."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAI

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 120.0
MODELS = [
    {"name": "abacus", "alias": "math", "plain": {"modelId": "examples/models/abacus"}},
    {"name": "scribe", "plain": {"modelId": "examples/models/scribe"}, "scaling": {"minReplicas": 0}},
]


def eventually(ask: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not ask():
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE} s: {what}")
        time.sleep(0.05)


def write_manifest(folder: Path, models: list[dict[str, Any]]) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(json.dumps({"metadata": {"name": "mm"}, "spec": {"models": models}}))
    return path


def arguments(manifest: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "multimodel_router", "--fleet=processes", f"--manifest={manifest}", f"--port={port}"]


class RouterProcess:
    """`python -m multimodel_router` on this machine."""

    def __init__(self, folder: Path, models: list[dict[str, Any]]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "router.log"
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE, trust_env=False)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(arguments(write_manifest(folder, models), port), cwd=ROOT, stderr=log)
        eventually(self._listens, "the router listens")

    def _listens(self) -> bool:
        try:
            return self.http.get("/health/ready").is_success
        except httpx.TransportError:
            return False

    def status(self, model_id: str) -> str:
        return str(self.http.post("/v1/models/status", json={"model_id": model_id}).json()["status"])

    def until_loaded(self, model_id: str) -> None:
        def loaded() -> bool:
            status = self.status(model_id)
            assert status != "internal_error", self.log.read_text()
            return status == "loaded"

        eventually(loaded, f"{model_id} is loaded")

    def family(self) -> list[psutil.Process]:
        """Return the router and all processes below it."""
        router = psutil.Process(self.process.pid)
        return [router, *router.children(recursive=True)]

    def end(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RouterProcess]]:
    started: list[RouterProcess] = []

    def start_router(models: list[dict[str, Any]]) -> RouterProcess:
        started.append(RouterProcess(tmp_path, models))
        return started[-1]

    yield start_router
    for router in started:
        router.end()


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_two_trained_models_answer(start: Callable[..., RouterProcess]) -> None:
    router = start(MODELS)
    assert f"MultiModel answers on {router.url}/v1" in router.log.read_text()
    with OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as client:
        asked = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 16}
        for model, answered in (("default", "math"), ("examples/models/scribe", "examples/models/scribe")):
            whole = client.chat.completions.create(model=model, **asked)
            stream = client.chat.completions.create(model=model, stream=True, **asked)
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
            assert whole.choices[0].message.content == "".join(pieces) != ""
            assert whole.model == answered


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_router_and_all_its_model_servers(start: Callable[..., RouterProcess], number: int) -> None:
    router = start(MODELS[:1])
    router.until_loaded("math")
    family = router.family()
    assert len(family) > 2  # the router, the model server, its engine
    router.process.send_signal(number)
    assert router.process.wait(DEADLINE) == 0
    eventually(
        lambda: all_gone(family), "every process has ended"
    )  # multiprocessing's own helper ends after its engine
    assert "Traceback" not in router.log.read_text()


def test_unload_ends_the_server_and_a_request_brings_it_back(start: Callable[..., RouterProcess]) -> None:
    router = start(MODELS[:1])
    router.until_loaded("math")
    servers = router.family()[1:]
    assert router.http.post("/v1/models/unload", json={"model_id": "math"}).json()["status"] == "unloaded"
    eventually(lambda: all_gone(servers), "the model server has ended")
    asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    assert router.http.post("/v1/chat/completions", json=asked).status_code == 200
    assert router.status("math") == "loaded"


def test_kill_9_of_the_router_takes_the_model_servers_along(start: Callable[..., RouterProcess]) -> None:
    router = start(MODELS[:1])
    router.until_loaded("math")
    family = router.family()
    router.process.kill()
    eventually(lambda: all_gone(family), "every process has ended")


def test_a_folder_that_is_not_there_is_named_to_whoever_asks(start: Callable[..., RouterProcess]) -> None:
    router = start([{"name": "gone", "plain": {"modelId": "./no/such/model"}}])
    reply = router.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hello"}]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "ModelNotFound")
    assert "./no/such/model" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("metadata: {name: [", "is not YAML"),
        ("metadata: {name: mm}\nspec: {models: []}", "is not a MultiModel"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_explained(tmp_path: Path, text: str | None, words: str) -> None:
    manifest = tmp_path / "manifest.yaml"
    if text is not None:
        manifest.write_text(text)
    done = subprocess.run(arguments(manifest, 0), capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert str(manifest) in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = arguments(write_manifest(tmp_path, MODELS[1:]), port)
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode != 0
    assert f"127.0.0.1', {port}" in done.stderr
    assert "Traceback" not in done.stderr
