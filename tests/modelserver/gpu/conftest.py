"""Models of real widths with random weights, on the device and in transformers, and the engine's loop without a pipe.

All that is here needs a CUDA device, and is skipped where there is none.
"""

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine.loading import LoadedModel, load
from multimodel_server.engine.loop import Engine
from multimodel_server.engine.messages import (
    Cancel,
    Generate,
    RequestFailed,
    Sampling,
    Step,
    Stop,
    decode_from_engine,
    encode,
)
from multimodel_server.engine.pace import Pace

VOCABULARY = 32000
COMMON = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 4,
    "max_position_embeddings": 8192,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "qwen3": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "llama": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "gemma2": {
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 256,
    },
}
"""Heads of 128, 64 and 256; with norms of their own, without, and with windows and soft caps."""


@dataclass(frozen=True)
class RealModel:
    """A model folder in bfloat16, and the same weights in transformers."""

    path: Path
    device: torch.device

    def truth(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return transformers' model, computing in an element type."""
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype, attn_implementation="eager")
        return model.to(self.device).eval()


@dataclass
class Script:
    """The far end of an engine's pipe, in the engine's process: messages come when so many steps are told."""

    arrivals: list[tuple[int, Generate | Cancel]]
    answers: dict[str, list[int]] = field(default_factory=dict)
    steps: int = 0

    def poll(self, patience: float = 0.0) -> bool:
        idle = patience > 0
        return idle or (bool(self.arrivals) and self.arrivals[0][0] <= self.steps)

    def recv_bytes(self) -> bytes:
        return encode(self.arrivals.pop(0)[1] if self.arrivals else Stop())

    def send_bytes(self, frame: bytes) -> None:
        message = decode_from_engine(frame)
        assert not isinstance(message, RequestFailed), message
        if isinstance(message, Step):
            self.steps += 1
            for tokens in message.tokens:
                self.answers.setdefault(tokens.request_id, []).extend(tokens.token_ids)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device, where there is one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def memory_given_back(device: torch.device) -> Iterator[None]:
    """Leave the device's memory to the next test."""
    yield
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def real_model(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RealModel]:
    """Return the model of a family, made once."""
    made: dict[str, RealModel] = {}

    def make(family: str) -> RealModel:
        if family not in made:
            torch.manual_seed(len(family))
            config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family])
            with device:
                model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            path = tmp_path_factory.mktemp(family)
            model.save_pretrained(path)
            made[family] = RealModel(path, device)
        return made[family]

    return make


@pytest.fixture(params=sorted(FAMILIES))
def any_model(request: pytest.FixtureRequest, real_model: Callable[[str], RealModel]) -> RealModel:
    """Every family, one after another."""
    return real_model(request.param)


@pytest.fixture
def loaded(device: torch.device) -> Callable[..., LoadedModel]:
    """Return an engine's model, with settings given by name; prompts are always computed, and so the same way."""

    def make(path: Path, **settings: object) -> LoadedModel:
        chosen = {"kv_size": KvSize(context_len=32768), "max_seqs": 24, "prefix_cache_n": 0, **settings}
        config = EngineConfig(path, **chosen)
        return load(config, lambda *_: None)

    return make


@pytest.fixture(autouse=True)
def steady_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have prompts cut the same way every time, however long steps take: other cuts round otherwise."""
    monkeypatch.setattr(Pace, "observe", lambda *_: None)


@pytest.fixture
def answer() -> Callable[..., dict[str, list[int]]]:
    """Return the tokens of each request; messages come once so many steps are told, or the engine is idle."""

    def run(model: LoadedModel, arrivals: Sequence[tuple[int, Generate | Cancel]]) -> dict[str, list[int]]:
        script = Script(sorted(arrivals, key=lambda arrival: arrival[0]))
        Engine(model, script).run()
        return script.answers

    return run


@pytest.fixture
def generate() -> Callable[..., Generate]:
    """Return a request, greedy unless its sampling says otherwise; ids count up from r0."""
    numbers = itertools.count()

    def make(prompt: Sequence[int], max_tokens: int, **sampling: object) -> Generate:
        return Generate(f"r{next(numbers)}", list(prompt), Sampling(max_tokens=max_tokens, **sampling))

    return make


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts around the edges of blocks, tiles and windows."""
    generator = torch.Generator().manual_seed(5)
    lengths = (1, 15, 16, 17, 64, 100, 255, 300, 700, 1500)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
