"""Tiny models in the Hugging Face layout with transformers as the oracle, and an engine driven step by step."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine.batch import build_batch
from multimodel_server.engine.loading import load
from multimodel_server.engine.messages import Generate, Sampling, Tokens
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Told
from multimodel_server.engine.schedulers import scheduler_for

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
    "pad_token_id": None,
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
YARN_SCALING = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_SCALING = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 5.0],
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
GEMMA = {"query_pre_attn_scalar": 20, "sliding_window": 8, "num_hidden_layers": 4, "head_dim": 16}


def _tiny(family: str, **changes: object) -> Callable[[], PreTrainedModel]:
    """Return what makes a model of a family, Gemma's soft caps included."""

    def make() -> PreTrainedModel:
        config = AutoConfig.for_model(family, **{**TINY, **changes})
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")

    return make


VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_tied_wide_heads": _tiny("qwen3", head_dim=16, tie_word_embeddings=True),
    "qwen3_untied_biased": _tiny("qwen3", head_dim=16, attention_bias=True),
    "llama_untied_scaled_rope": _tiny("llama", rope_parameters=LLAMA3_SCALING),
    "llama_tied_biased_one_kv_head": _tiny(
        "llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True, num_key_value_heads=1
    ),
}
"""Models for the tests of what all architectures share."""

ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama_linear": _tiny("llama", rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}),
    "mistral": _tiny("mistral", sliding_window=8),
    "mixtral": _tiny("mixtral", num_local_experts=5, num_experts_per_tok=2, sliding_window=24),
    "qwen2_yarn": _tiny("qwen2", initializer_range=0.15, rope_parameters=YARN_SCALING),
    "qwen2_late_windows": _tiny("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": _tiny("qwen3", head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3_moe": _tiny("qwen3_moe", **EXPERTS, head_dim=16, norm_topk_prob=True),
    "qwen3_moe_partly_dense": _tiny(
        "qwen3_moe", **EXPERTS, decoder_sparse_step=2, mlp_only_layers=[1], num_hidden_layers=4, attention_bias=True
    ),
    "gemma2": _tiny("gemma2", **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=5.0),
    "gemma3": _tiny(
        "gemma3_text",
        **GEMMA,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "phi3": _tiny("phi3", sliding_window=40),
    "phi3_long_partial": _tiny(
        "phi3",
        num_key_value_heads=4,
        hidden_size=64,
        rope_parameters={**LONG_SCALING, "partial_rotary_factor": 0.5},
        original_max_position_embeddings=4,
    ),
    "smollm3": _tiny("smollm3", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0]),
    "smollm3_windowed": _tiny(
        "smollm3", no_rope_layer_interval=2, use_sliding_window=True, sliding_window=8, num_hidden_layers=4
    ),
}
"""One model or more of every architecture, with what is special about it strong enough to show."""


@dataclass(frozen=True)
class TinyModel:
    """A model with random weights, on disk for the engine and in transformers for the truth."""

    path: Path
    model: PreTrainedModel

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return [tokens, vocabulary] of a whole text, computed without any cache."""
        with torch.inference_mode():
            return self.model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the next `count` tokens as transformers generates them, with its own cache."""
        answer = self.model.generate(torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False)
        return answer[0, len(prompt) :].tolist()

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
        self.scheduler = scheduler_for(loaded.limits, loaded.blocks)

    def step(self) -> list[Told]:
        chunks = self.scheduler.schedule()
        batch = build_batch(chunks, self.config.block_size, self.runner.device)
        tokens = self.scheduler.complete(chunks, self.runner.step(batch))
        assert self.scheduler.problems() == []
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
                assert isinstance(tokens, Tokens), tokens
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
            model = {**VARIANTS, **ARCHITECTURES}[variant]().eval()
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


@pytest.fixture(scope="session", params=sorted(ARCHITECTURES))
def any_architecture(request: pytest.FixtureRequest, tiny_model: Callable[[str], TinyModel]) -> TinyModel:
    """Every architecture, one after another."""
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
