"""Tiny models in the Hugging Face layout with transformers as the oracle, and an engine driven step by step."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine.batch import build_batch
from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.loading import load
from multimodel_server.engine.messages import Generate, Sampling, Tokens
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Scheduler

VOCABULARY = 211
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "architectures": None,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _qwen3(**changes: object) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**{**TINY, "head_dim": 16, **changes}))


def _llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**TINY, **changes}))


VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_tied_wide_heads": lambda: _qwen3(tie_word_embeddings=True),
    "qwen3_untied_biased": lambda: _qwen3(attention_bias=True),
    "llama_untied_scaled_rope": lambda: _llama(rope_parameters=LLAMA3_SCALING),
    "llama_tied_biased_one_kv_head": lambda: _llama(
        tie_word_embeddings=True, attention_bias=True, mlp_bias=True, num_key_value_heads=1
    ),
}


@dataclass(frozen=True)
class TinyModel:
    """A model with random weights, on disk for the engine and in transformers for the truth."""

    path: Path
    model: PreTrainedModel

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return [tokens, vocabulary] of a whole text, computed without any cache."""
        with torch.inference_mode():
            return self.model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the next `count` tokens, each from a forward pass over the whole text before it."""
        text = list(prompt)
        for _ in range(count):
            text.append(int(self.logits(text)[-1].argmax()))
        return text[len(prompt) :]


@dataclass
class SteppedEngine:
    """Scheduler and runner of a model folder, without a process around them."""

    config: EngineConfig
    steps: int = 0
    finished: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loaded = load(self.config, lambda *_: None)
        self.runner = loaded.runner
        self.scheduler = Scheduler(loaded.limits, BlockPool(loaded.blocks))

    def step(self) -> list[Tokens]:
        chunks = self.scheduler.schedule()
        batch = build_batch(chunks, self.config.block_size, self.runner.device)
        tokens = self.scheduler.complete(chunks, self.runner.step(batch))
        tables = [request.block_table for request in self.scheduler.running]
        assert self.scheduler.blocks.problems(tables) == []
        self.steps += 1
        return tokens

    def answer(self, arrivals: Sequence[tuple[int, Generate]]) -> dict[str, list[int]]:
        """Return each request's tokens; a request arrives once so many steps are done."""
        answers: dict[str, list[int]] = {message.request_id: [] for _, message in arrivals}
        pending = sorted(arrivals, key=lambda arrival: arrival[0])
        begun = self.steps
        while pending or self.scheduler.has_work:
            while pending and (pending[0][0] <= self.steps - begun or not self.scheduler.has_work):
                request = Request.of(pending.pop(0)[1])
                assert self.scheduler.refusal(request) is None
                self.scheduler.add(request)
            for tokens in self.step():
                answers[tokens.request_id] += tokens.token_ids
                if tokens.finish_reason:
                    self.finished[tokens.request_id] = tokens.finish_reason
        assert self.scheduler.blocks.used == 0
        return answers


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are quickest on one thread; more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Return the tiny model of a variant's name, made and saved once."""
    made: dict[str, TinyModel] = {}
    transformers.utils.logging.disable_progress_bar()

    def make(variant: str) -> TinyModel:
        if variant not in made:
            torch.manual_seed(len(variant))
            model = VARIANTS[variant]().eval()
            for parameter in model.parameters():  # norms and biases start at 1 and 0, which would hide mistakes
                if parameter.ndim == 1:
                    parameter.data.add_(torch.randn_like(parameter) * 0.2)
            path = tmp_path_factory.mktemp(variant)
            model.save_pretrained(path)
            made[variant] = TinyModel(path, model)
        return made[variant]

    return make


@pytest.fixture(scope="session", params=sorted(VARIANTS))
def any_tiny_model(request: pytest.FixtureRequest, tiny_model: Callable[[str], TinyModel]) -> TinyModel:
    """Every variant, one after another."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def stepped_engine() -> Callable[..., SteppedEngine]:
    """Return an engine for a model folder, with settings given by name."""

    def make(path: Path, *, context_len: int = 4096, **settings: object) -> SteppedEngine:
        return SteppedEngine(EngineConfig(path, kv_size=KvSize(context_len=context_len), **settings))

    return make


@pytest.fixture(scope="session")
def generate() -> Callable[..., Generate]:
    """Return a greedy request for a prompt under a fresh id, its sampling changed by name."""
    numbers = itertools.count()

    def make(prompt: Sequence[int], max_tokens: int, **sampling: object) -> Generate:
        return Generate(f"r{next(numbers)}", list(prompt), Sampling(max_tokens=max_tokens, **sampling))

    return make


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts around the edges of blocks and chunks."""
    generator = torch.Generator().manual_seed(7)
    lengths = (1, 2, 15, 16, 17, 40, 64, 91)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change fields of a JSON file in place; None removes a field."""

    def edit(path: Path, **changes: object) -> None:
        document = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))

    return edit
