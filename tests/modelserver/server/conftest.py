"""A tiny random model with a real tokenizer, and real server processes that serve it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import openai
import psutil
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

CONTEXT = 2048
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
TEXT = [
    "hello world, how are you today?",
    "schön, naïve café: 你好，世界 🎉 ça va?",
    "one two three four five six",
] * 50


def make_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, "chat_template": TEMPLATE}
        )
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of random weights that never ends by itself when greedy."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, dtype="float32", initializer_range=0.2,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[:2] = 0
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    return folder


@dataclass
class ServerProcess:
    """A running model server."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read_lines, daemon=True)
        self.reader.start()

    def read_lines(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def wait_for_line(self, pattern: str, *, after: int = 0, seconds: float = 60) -> re.Match[str]:
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            found.extend(match for line in self.lines[after:] if (match := re.search(pattern, line)))
            return bool(found) or not self.reader.is_alive()

        with self.changed:
            assert self.changed.wait_for(is_there, seconds) and found, f"no {pattern!r} in:\n" + "\n".join(self.lines)
        return found[0]

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def messages(self) -> list[str]:
        """The log's messages, without time and level."""
        return [line.split(" ", 3)[3] if line.count(" ") > 2 else line for line in self.lines]

    @property
    def url(self) -> str:
        return self.wait_for_line(r"Listening on (http://\S+)").group(1)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, verify=False, **options)

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60, **options)

    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        (engine,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return engine

    def metric(self, name: str, label: str = "") -> float:
        """Return the sum of the series of a metric that have the label."""
        with urlopen(f"{self.url}/metrics", timeout=30) as response:
            text = response.read().decode()
        values = re.findall(rf"^{name}{{[^}}]*{label}[^}}]*}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, values))

    def wait_until_ready(self, seconds: float = 90) -> "ServerProcess":
        with self.http() as client:
            wait_until(lambda: client.get("/health/ready").status_code == 200, seconds, lambda: self.log)
        return self

    def wait(self, seconds: float = 30) -> int:
        """Return the exit status, once all of the log is read."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self.reader.join(10)
        return status

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{explain()}"
        time.sleep(0.02)


def launch(*arguments: object, env: dict[str, str] | None = None) -> ServerProcess:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    command = [sys.executable, "-m", "multimodel_server", "--port=0", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    )
    return ServerProcess(process)


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    """A server of the tiny model that all tests share."""
    running = launch("--model", tiny_model, "--alias", "tiny")
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that end with the test."""
    running: list[ServerProcess] = []

    def start(*arguments: object, env: dict[str, str] | None = None) -> ServerProcess:
        running.append(launch(*arguments, env=env))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def launch_server() -> Callable[..., ServerProcess]:
    """Starts a server that its user stops."""
    return launch


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_until
