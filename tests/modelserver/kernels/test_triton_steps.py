"""Whole steps of Triton's kernels: the runner of devices lays out what they take, and they agree to the token."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch

from multimodel_server import kernels
from multimodel_server.engine import device_steps
from multimodel_server.engine.device_runner import DeviceRunner
from multimodel_server.engine.messages import Generate, Sampling
from multimodel_server.engine.pipeline import Pipeline
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Limits
from multimodel_server.engine.schedulers import scheduler_for
from multimodel_server.models.decoder import Decoder
from multimodel_server.models.registry import read_model

BLOCKS, BLOCK = 24, 8
COMMON = {
    "vocab_size": 150,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500.0,
    "tie_word_embeddings": True,
}
CONFIGS = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 16,
        "sliding_window": 12,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    },
}
TRITON = {
    "triton_attention": ["paged_attention"],
    "triton_heads": ["prepare_heads"],
    "triton_norm": ["rms_norm", "add_rms_norm"],
    "triton_sampling": ["sample"],
}
REQUESTS = [
    ([5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], {}),
    ([77], {"temperature": 0.9, "seed": 3, "top_p": 0.9}),
    ([42, 43, 44], {"logprobs": 1}),
]


@pytest.fixture(params=sorted(CONFIGS))
def decoder(request, tmp_path):
    """A tiny model with random weights."""
    (tmp_path / "config.json").write_text(json.dumps(COMMON | CONFIGS[request.param]))
    decoder = Decoder(read_model(tmp_path))
    torch.manual_seed(1)
    for parameter in decoder.parameters():
        parameter.data.normal_(std=0.3)
    decoder.limit_context(COMMON["max_position_embeddings"])
    return decoder


@dataclass
class Recomputed:
    """Stands for a graph: computes again what was captured, with all that the host said when it was captured."""

    replay: Callable[[], torch.Tensor]


class Pool:
    def captured(self, compute):
        compute()
        return Recomputed(compute)


@torch.inference_mode()
def answers(decoder, *, captured):
    """Return the tokens of a few requests: decoded in padded batches, with pieces of prompts beside them."""
    limits = Limits(4, 8, 96, BLOCK, 150)
    cache = torch.zeros(2, 2, BLOCKS + 1, BLOCK, 2, 16)
    scheduler = scheduler_for(limits, BLOCKS)
    runner = DeviceRunner(decoder, cache, limits.max_seqs, limits.max_batched_tokens)
    if captured:
        runner._steps.capture()
    pipeline = Pipeline(scheduler, runner)
    told = {f"r{number}": [] for number in range(len(REQUESTS))}
    for number, (prompt, options) in enumerate(REQUESTS):
        scheduler.add(Request.of(Generate(f"r{number}", prompt, Sampling(max_tokens=3, **options))))
    while scheduler.has_work or pipeline.busy:
        chunks = pipeline.launch()
        for landing in pipeline.land(all_launched=not chunks):
            for message in landing.told:
                told[message.request_id] += message.token_ids
    return told


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log")  # of a min-p of 0, as on a device
def test_steps_of_tritons_kernels_choose_the_same_tokens(decoder, monkeypatch, poisoned_outputs):
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here, for the device alone")
    expected = answers(decoder, captured=False)
    for module, names in TRITON.items():
        for name in names:
            kernel = getattr(import_module(f"multimodel_server.kernels.{module}"), name)
            monkeypatch.setattr(kernels, name, kernel)
    monkeypatch.setattr(device_steps, "GraphPool", Pool)
    assert answers(decoder, captured=True) == expected
    assert all(len(tokens) == 3 for tokens in expected.values())
