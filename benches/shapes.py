"""Models of real sizes with random weights, made once and kept: speed does not depend on what weights say."""

import itertools
import json
import os
import string
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "multimodel" / "bench-models"
FILE_BYTES = 1 << 30
DEVIATION = 0.02
FORMAT = 2
"""Number of what `model_folder` writes; a folder of another one is made again."""


def _qwen3(width: int, inner: int, layers: int, heads: int, *, tied: bool) -> tuple[type[PreTrainedModel], Qwen3Config]:
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=tied,
    )
    return Qwen3ForCausalLM, config


SHAPES: dict[str, tuple[type[PreTrainedModel], PretrainedConfig]] = {
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
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
    "tiny": (
        Qwen3ForCausalLM,
        Qwen3Config(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        ),
    ),
}


def empty_model(shape: str) -> PreTrainedModel:
    """Return a shape's model without memory behind its weights."""
    architecture, config = SHAPES[shape]
    with torch.device("meta"):
        return architecture(config)


def model_folder(shape: str) -> Path:
    """Return the folder of a shape's model in bfloat16, with a tokenizer of its vocabulary; made now if need be."""
    folder = CACHE / f"{shape}-{FORMAT}"
    if not folder.exists():
        unfinished = CACHE / f"{folder.name}.{os.getpid()}"
        unfinished.mkdir(parents=True)
        _write_weights(shape, unfinished)
        _write_tokenizer(SHAPES[shape][1].vocab_size, unfinished)
        unfinished.rename(folder)
    return folder


def _write_weights(shape: str, folder: Path) -> None:
    """Write configuration and weights, drawn on the device if there is one: a CPU takes minutes for billions."""
    architecture, config = SHAPES[shape]
    written = {**config.to_dict(), "architectures": [architecture.__name__], "dtype": "bfloat16", "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(written, indent=2))
    file_of: dict[str, str] = {}
    for number, part in enumerate(_files(empty_model(shape))):
        name = f"model-{number:05}.safetensors"
        save_file({tensor: _drawn(size) for tensor, size in part.items()}, folder / name, metadata={"format": "pt"})
        file_of |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def _files(model: PreTrainedModel) -> Iterator[dict[str, torch.Size]]:
    """Return the sizes of a model's tensors, as many at once as a file is to hold."""
    part: dict[str, torch.Size] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if part and 2 * sum(size.numel() for size in [*part.values(), tensor.shape]) > FILE_BYTES:
            yield part
            part = {}
        part[name] = tensor.shape
    yield part


def _drawn(size: torch.Size) -> torch.Tensor:
    """Return random weights, or the ones that norms begin with."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor = torch.empty(size, dtype=torch.bfloat16, device=device)
    return (tensor.fill_(1.0) if len(size) == 1 else tensor.normal_(0.0, DEVIATION)).cpu()


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Write a byte-level tokenizer that has a text for every token: bytes, then made-up words, which nothing merges."""
    letters = string.ascii_lowercase
    words = (f"Ġ{''.join(word)}" for length in (2, 3, 4) for word in itertools.product(letters, repeat=length))
    names = itertools.islice(itertools.chain(sorted(pre_tokenizers.ByteLevel.alphabet()), words), vocab_size)
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
