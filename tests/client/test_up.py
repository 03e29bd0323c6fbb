"""`up`, `serve` and `from-config` for real: router, model servers and trained models as processes of this machine."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from multimodel import Client
from multimodel_api.state import ModelState

ROOT = Path(__file__).parents[2]
ABACUS = "examples/models/abacus"
SERVING = "Ctrl-C stops everything."
LOAD_SECONDS = 150.0


def wait_until(condition, seconds, failure):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure()
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Command:
    """A `multimodel` command in a session of its own, with its output in a file."""

    def __init__(self, folder, *arguments):
        self.port = free_port()
        self._output = folder / f"{self.port}.txt"
        command = [sys.executable, "-m", "multimodel", *arguments, "--port", str(self.port)]
        environment = os.environ | {"TMPDIR": str(folder)}
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self._processes = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self):
        return self._output.read_text()

    def wait_for(self, text):
        wait_until(lambda: text in self.output or self.process.poll() is not None, LOAD_SECONDS, lambda: self.output)
        assert text in self.output, self.output

    def started(self):
        """Every process that descends from the command, by what runs in it."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            self._processes[process.pid] = process
        return self._processes

    def router(self):
        (router,) = psutil.Process(self.process.pid).children()
        return router

    def left(self):
        """What still runs of everything that was started, and of everything in the command's session."""
        session = [pid for pid in psutil.pids() if session_of(pid) == self.process.pid]
        started = [pid for pid, process in self._processes.items() if process.is_running()]
        return [pid for pid in {*session, *started} if runs(pid)]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)


def session_of(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    commands = []

    def start_command(*arguments):
        commands.append(Command(tmp_path_factory.mktemp("up"), *arguments))
        return commands[-1]

    yield start_command
    for command in commands:
        command.close()


@pytest.fixture(scope="module")
def quickstart(start):
    command = start("up", "examples/quickstart.yaml")
    command.wait_for(SERVING)
    return command


def run_cli(command, *arguments, **options):
    environment = os.environ | {"MULTIMODEL_URL": command.url}
    arguments = [sys.executable, "-m", "multimodel", *arguments]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, **options)


def test_the_printed_curl_lines_work_as_they_stand(quickstart):
    lines = [line for line in quickstart.output.splitlines() if line.startswith("curl ")]
    replies = [
        json.loads(subprocess.run(shlex.split(line), capture_output=True, check=True, timeout=60).stdout)
        for line in lines
    ]
    assert [card["id"] for card in replies[0]["data"]] == ["default", "math", "words"]
    assert [reply["model"] for reply in replies[1:]] == ["math", "words"]
    assert all(reply["choices"][0]["message"]["content"] for reply in replies[1:])


def test_loading_is_told_line_by_line(quickstart):
    for model_id in ("math", "words"):
        states = [line for line in quickstart.output.splitlines() if line.startswith(f"{model_id}: ")]
        assert "reloading" in states[0]
        assert any(line.startswith(f"{model_id}: loaded (") for line in states)


def test_chat_status_unload_and_a_chat_that_loads_again(quickstart):
    assert "42" in run_cli(quickstart, "chat", "What is 17 + 25?").stdout
    assert run_cli(quickstart, "unload", "words").stdout == "words: unloaded\n"
    assert json.loads(run_cli(quickstart, "status", "words", "--json").stdout)["models"][0]["status"] == "unloaded"
    assert "c-a-t" in run_cli(quickstart, "chat", "--model", "words", input="Spell cat").stdout
    assert run_cli(quickstart, "reload", "words").stdout == "words: loaded\n"
    assert run_cli(quickstart, "status").returncode == 0
    quickstart.wait_for("words: unloaded: the next request loads it")


def test_ctrl_c_leaves_no_process_behind(start):
    command = start("serve", "-m", ABACUS, "--alias", "one")
    command.wait_for(SERVING)
    assert len(command.started()) >= 3, "router, model server and engine"
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(60) == 0, command.output
    assert command.left() == []


def test_a_second_ctrl_c_does_not_wait_for_servers_that_hang(start):
    command = start("serve", "-m", ABACUS)
    command.wait_for(SERVING)
    for process in command.started().values():
        if process.pid != command.router().pid:
            process.suspend()
    command.process.send_signal(signal.SIGINT)
    command.wait_for("Stopping; Ctrl-C again stops at once.")
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(10) == 0, command.output
    wait_until(lambda: not command.left(), 10, lambda: f"still running: {command.left()}\n{command.output}")


def test_nothing_survives_a_kill_of_the_command(start, tmp_path):
    configuration = tmp_path / "config.json"
    configuration.write_text(json.dumps({"Abacus!": {"alias": "one", "Plain": {"model_id": ABACUS}}}))
    command = start("from-config", "--file", str(configuration))
    command.wait_for(SERVING)
    assert len(command.started()) >= 3, "router, model server and engine"
    command.process.kill()
    command.process.wait()
    wait_until(lambda: not command.left(), 60, lambda: f"still running: {command.left()}\n{command.output}")


def test_a_router_that_dies_ends_the_command_and_the_servers(start):
    command = start("serve", "-m", str(ROOT / ABACUS))
    command.wait_for(SERVING)
    command.started()
    command.router().kill()
    assert command.process.wait(30) == 1
    assert "the router ended unexpectedly" in command.output
    wait_until(lambda: not command.left(), 30, lambda: f"still running: {command.left()}\n{command.output}")


def test_a_model_that_fails_says_why_and_the_others_serve(start, tmp_path):
    models = [
        {"name": "good", "alias": "good", "plain": {"modelId": ABACUS}},
        {"name": "bad", "alias": "bad", "plain": {"modelId": "./no-such-folder"}},
        {"name": "lazy", "alias": "lazy", "plain": {"modelId": ABACUS}, "scaling": {"minReplicas": 0}},
    ]
    manifest = tmp_path / "models.yaml"
    head = {"apiVersion": "multimodel.dev/v1alpha1", "kind": "MultiModel", "metadata": {"name": "mixed"}}
    manifest.write_text(yaml.safe_dump({**head, "spec": {"models": models}}))
    command = start("up", str(manifest))
    command.wait_for(SERVING)
    assert "1 of 3 models loaded" in command.output
    assert "bad: internal_error: ModelNotFound: " in command.output
    assert "lazy: unloaded: the next request loads it" in command.output
    with Client(command.url) as client:
        assert client.chat([{"role": "user", "content": "Hello!"}], "good", max_tokens=8).choices[0].message.content
        assert client.status("bad").status is ModelState.INTERNAL_ERROR
    command.started()
    command.process.terminate()
    assert command.process.wait(60) == 0, command.output
    assert command.left() == []


def test_keys_are_asked_for_and_may_change_while_it_serves(start, tmp_path, monkeypatch):
    def made(name, *options):
        arguments = [sys.executable, "-m", "multimodel", "keys", "new", name, "--folder", str(tmp_path), *options]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    own, bob = made("me", "--actions=infer,manage"), made("bob", "--models=another")
    monkeypatch.setenv("MULTIMODEL_API_KEY", own)
    command = start("serve", "-m", ABACUS, "--alias", "one", "--api-keys", str(tmp_path))
    command.wait_for(SERVING)
    asked = run_cli(command, "chat", "What is 17 + 25?")
    assert "42" in asked.stdout, asked.stderr
    assert "may not infer with the model 'one'" in run_cli(command, "chat", "hi", "--api-key", bob).stderr
    assert "Pass it with --api-key" in run_cli(command, "status", "--api-key", "sk-mm-none").stderr
    guest = made("guest")
    wait_until(lambda: run_cli(command, "status", "--api-key", guest).returncode == 0, 20, lambda: command.output)
    assert not any(key in command.output for key in (own, bob, guest))


def test_without_any_model_the_command_fails(start):
    command = start("serve", "-m", "./no-such-folder")
    assert command.process.wait(LOAD_SECONDS) == 1
    assert "ModelNotFound: " in command.output
    assert "No model could be loaded; stopping." in command.output
    assert command.left() == []
