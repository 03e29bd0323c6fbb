"""The commands that talk to an endpoint or to nobody, as a person types them."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from multimodel.cli import up
from multimodel.cli.application import app
from multimodel_api import errors
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.state import ModelState

COMMANDS = ("up", "serve", "from-config", "convert", "chat", "status", "unload", "reload")


@pytest.fixture
def run(endpoint, monkeypatch):
    monkeypatch.setenv("MULTIMODEL_URL", endpoint.url)
    return lambda *arguments, **options: CliRunner().invoke(app, arguments, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_the_command_at_work(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    shown = result.stdout.partition("Examples")[2]
    assert re.search(rf"^ +(MULTIMODEL_URL=\S+ )?multimodel {command}\b", shown, re.MULTILINE)


def test_the_top_help_names_every_command_and_the_version_is_the_packages(run):
    shown = run("--help").stdout
    assert all(command in shown for command in COMMANDS)
    assert re.fullmatch(r"multimodel \d+\.\d+\.\d+\n", run("--version").stdout)


def test_status_lists_models_with_the_default_marked(run):
    result = run("status")
    assert result.exit_code == 0
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if "loaded" in line}
    assert set(lines) == {"math", "org/words"}
    assert "✓" in lines["math"]
    assert "✓" not in lines["org/words"]


def test_status_of_one_model_as_json(run):
    document = json.loads(run("status", "default", "--json").stdout)
    (card,) = document["models"]
    assert (card["id"], card["status"], card["default"]) == ("math", "loaded", True)


def test_status_fails_when_a_model_has_failed_and_says_why(run, endpoint):
    failure = LoadFailure(reason=FailureReason.BAD_WEIGHTS, message="cut short")
    endpoint.set("org/words", status=ModelState.INTERNAL_ERROR, failure=failure)
    result = run("status")
    assert result.exit_code == 1
    assert "BadWeights: cut short" in result.stdout
    assert run("status", "math").exit_code == 0


def test_status_of_an_unknown_model_names_the_known_ones(run):
    result = run("status", "nope")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: The model 'nope' does not exist. Known models: 'math', 'org/words'.\n"


def test_unload_and_reload(run):
    unloaded, reloaded = run("unload", "math"), run("reload", "math", "--json")
    assert (unloaded.exit_code, unloaded.stdout) == (0, "math: unloaded\n")
    assert json.loads(reloaded.stdout) == {"model_id": "math", "status": "loaded"}


def test_unload_of_an_unknown_model_fails(run):
    result = run("unload", "nope")
    assert (result.exit_code, result.stdout) == (1, "nope: not_found\n")


def test_reload_that_fails_says_why(run, endpoint):
    failure = LoadFailure(reason=FailureReason.OOM_KILLED, message="it needs 9 GiB")
    endpoint.set("math", status=ModelState.INTERNAL_ERROR, failure=failure)
    result = run("reload", "math")
    assert (result.exit_code, result.stdout) == (1, "math: internal_error: OOMKilled: it needs 9 GiB\n")


@pytest.mark.parametrize("command", [("status",), ("unload", "m"), ("reload", "m"), ("chat", "hi")])
def test_an_endpoint_that_is_not_there_is_answered_with_what_to_type(run, command):
    result = run(*command, "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "no answer from http://127.0.0.1:9/" in result.stderr
    assert "multimodel up FILE" in result.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:1234", "http://", "ftp://a", "http://a:port", "word"])
def test_a_url_that_is_none_is_refused_with_an_example(run, url):
    result = run("status", "--url", url)
    assert result.exit_code == 2
    assert "http://127.0.0.1:1234" in result.stderr


def test_chat_answers_a_prompt(run, endpoint):
    result = run("chat", "--model", "math", "two words")
    assert (result.exit_code, result.stdout) == (0, "You said: two words\n")
    assert endpoint.bodies[0]["model"] == "math"


def test_chat_answers_what_is_piped_in(run):
    assert run("chat", input="from a\npipe\n").stdout == "You said: from a\npipe\n"


def test_an_answer_cannot_steer_the_terminal(run):
    assert run("chat", "\x1b[2J\x9bgone\ttab\r\x07").stdout == "You said: [2Jgone\ttab\n"


def test_chat_refuses_an_empty_question(run):
    assert run("chat", input="\n").exit_code == 2


def test_chat_reports_the_endpoints_error(run, endpoint):
    endpoint.chat_error = errors.model_not_found("nope", ["math"])
    result = run("chat", "--model", "nope", "hi")
    assert (result.exit_code, result.stderr) == (1, "error: The model 'nope' does not exist. Known models: 'math'.\n")


ON_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY)
runpy.run_module("multimodel", run_name="__main__")
"""


class Terminal:
    """The command on a terminal of its own, which Ctrl-C reaches it through."""

    def __init__(self, *arguments):
        self._screen, inside = pty.openpty()
        command = [sys.executable, "-c", ON_TERMINAL, *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env=os.environ | {"TERM": "dumb"},
        )
        os.close(inside)
        self.shown = ""

    def type(self, text):
        self.shown = ""
        os.write(self._screen, text.encode())

    def wait_for(self, text, seconds=30.0):
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert select.select([self._screen], [], [], deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self._screen, 4096).decode()

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._screen)


@pytest.fixture
def terminal(endpoint):
    opened = Terminal("chat", "--url", endpoint.url)
    yield opened
    opened.close()


def test_a_conversation_keeps_its_history_until_cleared_and_outlives_errors(terminal, endpoint):
    terminal.wait_for("/exit ends it")
    terminal.type("first\n")
    terminal.wait_for("You said: first")
    terminal.type("second\n")
    terminal.wait_for("You said: second")
    assert [message["content"] for message in endpoint.bodies[-1]["messages"]] == ["first", "You said: first", "second"]
    terminal.type("/model nope\n")
    terminal.wait_for("Known models: 'math', 'org/words'")
    terminal.type("/model org/words\n")
    terminal.wait_for("model: org/words")
    endpoint.chat_error = errors.server_error("out of luck")
    terminal.type("lost\n")
    terminal.wait_for("out of luck")
    endpoint.chat_error = None
    terminal.type("/clear\n")
    terminal.wait_for("conversation forgotten")
    terminal.type("third\n")
    terminal.wait_for("You said: third")
    assert endpoint.bodies[-1]["model"] == "org/words"
    assert [message["content"] for message in endpoint.bodies[-1]["messages"]] == ["third"]
    terminal.type("/what\n")
    terminal.wait_for("/model [ID] shows or changes")
    terminal.type("/exit\n")
    assert terminal.process.wait(10) == 0


def test_ctrl_c_ends_an_answer_and_not_the_conversation(terminal, endpoint):
    terminal.wait_for("/exit ends it")
    endpoint.pause.clear()
    terminal.type("long\n")
    terminal.wait_for("You")
    terminal.type("\x03")
    terminal.wait_for("> ")
    endpoint.pause.set()
    terminal.type("short\n")
    terminal.wait_for("You said: short\r\n> ")
    assert [message["content"] for message in endpoint.bodies[-1]["messages"]] == ["short"]
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0


def test_convert_prints_the_manifest_and_warns_on_standard_error(run, tmp_path):
    file = tmp_path / "My config.json"
    file.write_text('{"a": {"Plain": {"model_id": "org/a", "arch": "llama"}}}')
    result = run("convert", str(file))
    assert result.exit_code == 0
    assert "name: my-config\n" in result.stdout
    assert result.stderr == (
        f"warning: {file}: a: Plain.arch is ignored: the architecture is read from the model's config.json\n"
    )


@pytest.mark.parametrize("command", ["convert", "from-config"])
def test_a_bad_configuration_exits_2_and_names_the_file(run, tmp_path, command):
    file = tmp_path / "config.json"
    file.write_text('{"a": {"Gguf": {}}}')
    result = run(command, *(["--file"] if command == "from-config" else []), str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {file}: a: unknown variant Gguf; did you mean GGUF?\n"


def test_a_bad_manifest_exits_2_with_a_line_for_each_problem(run, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text("apiVersion: multimodel.dev/v1alpha1\nkind: MultiModel\nmetadata: {name: a}\nspec: {modles: []}")
    result = run("up", str(file))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: {file}: spec.models: is required; add it",
        f"error: {file}: spec.modles: is no known field; did you mean models?",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pa-memory-mb", "1", "--pa-context-len", "1"), "at most one of"),
        (("--pa-block-size", "5"), "--pa-block-size"),
        (("--max-seqs", "0"), "--max-seqs"),
        (("--prefix-cache-n", "-1"), "--prefix-cache-n"),
        (("--paged-attn", "maybe"), "--paged-attn"),
        (("-n", "0:x"), "--num-device-layers"),
        (("--dtype", "f8"), "--dtype"),
        (("--alias", "default"), "--alias"),
    ],
)
def test_serve_refuses_bad_options_by_name(run, options, message):
    result = run("serve", "-m", "org/a", *options)
    assert result.exit_code == 2
    assert message in " ".join(re.sub("[│\n]", " ", result.stderr).split())


ENGINE_FLAGS = (
    "--max-seqs", "64", "--max-num-batched-tokens", "512", "--paged-attn", "off", "--pa-memory-fraction", "0.9",
    "--pa-cache-type", "auto", "--prefix-cache-n", "32", "--no-kv-cache", "--max-seq-len", "8192",
    "--max-batch-size", "2", "-n", "0:16;1:12", "-c", "{{ 1 }}",
)  # fmt: skip
ENGINE = {
    "max_seqs": 64, "max_batched_tokens": 512, "paged_attention": {"mode": "off", "memory_fraction": 0.9,
    "cache_type": "auto"}, "prefix_cache_n": 32, "no_kv_cache": True, "max_seq_len": 8192, "max_batch_size": 2,
    "num_device_layers": ["0:16", "1:12"], "chat_template": "{{ 1 }}",
}  # fmt: skip


def test_the_flags_of_serve_are_the_engine_settings_of_its_model(run, monkeypatch):
    served = []
    monkeypatch.setattr(up, "serve_resource", lambda resource, *_: served.append(resource.spec) or 0)
    assert run("serve", "-m", "org/a", *ENGINE_FLAGS).exit_code == 0
    assert run("serve", "-m", "org/a").exit_code == 0
    assert [spec.models[0].engine.model_dump(exclude_none=True) for spec in served] == [ENGINE, {}]


def test_the_flags_of_from_config_are_defaults_that_the_configuration_overrides(run, monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr(up, "serve_resource", lambda resource, *_: served.append(resource.spec) or 0)
    file = tmp_path / "config.json"
    file.write_text('{"a": {"Plain": {"model_id": "org/a"}}, "b": {"Plain": {"model_id": "org/b", "max_seq_len": 1}}}')
    assert run("from-config", "-f", str(file), *ENGINE_FLAGS).exit_code == 0
    [spec] = served
    engines = [spec.engine_of(model).model_dump(exclude_none=True) for model in spec.models]
    assert engines == [ENGINE, {**ENGINE, "max_seq_len": 1}]


@pytest.mark.parametrize(
    ("host", "port", "fix"),
    [
        ("127.0.0.1", None, "--port"),
        ("203.0.113.1", 1234, "--host 127.0.0.1"),
        ("no such host", 1234, "--host 127.0.0.1"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused_with_the_option_that_helps(run, endpoint, host, port, fix):
    result = run("serve", "-m", "org/a", "--host", host, "--port", str(port or endpoint.server_port))
    assert result.exit_code == 2
    assert fix in result.stderr
