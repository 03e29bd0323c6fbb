"""Models of real sizes with random weights, made once and kept: speed does not depend on what weights say."""

import os
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "multimodel" / "bench-models"
SHAPES: dict[str, tuple[type[PreTrainedModel], PretrainedConfig]] = {
    "qwen3-0.6b": (
        Qwen3ForCausalLM,
        Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
        ),
    ),
    "llama-3.2-1b": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            max_position_embeddings=131072,
            tie_word_embeddings=True,
        ),
    ),
}


def model_folder(shape: str) -> Path:
    """Return the folder of a shape's model in bfloat16, made now if need be."""
    folder = CACHE / shape
    if not (folder / "config.json").exists():
        architecture, config = SHAPES[shape]
        torch.manual_seed(0)
        model = architecture(config).to(torch.bfloat16)
        unfinished = CACHE / f"{shape}.{os.getpid()}"
        model.save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder
