"""A trained model in the folder layout of the Hugging Face Hub."""

import json
from pathlib import Path

from training.recipes import Model
from transformers import GenerationConfig, PreTrainedTokenizerFast


def save(model: Model, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write configuration, bfloat16 weights, tokenizer, chat template and greedy sampling defaults."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_the_public_class(folder / "tokenizer_config.json")
    for file in folder.iterdir():
        file.chmod(0o644)  # weights are written for the owner alone, and an image runs as somebody else


def _name_the_public_class(config: Path) -> None:
    """Name the tokenizer's class as every release of transformers knows it, not as the one at hand calls it inside."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(
        json.dumps(fields | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n", encoding="utf-8"
    )
