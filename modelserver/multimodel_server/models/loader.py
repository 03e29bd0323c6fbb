"""Weights from safetensors files straight into a decoder's parameters, strictly: nothing missing, nothing over."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch

from multimodel_server.layers.linear import PartialWeights
from multimodel_server.models import reader
from multimodel_server.models.checkpoint import StoredTensor, bad_weights, open_checkpoint, some_of
from multimodel_server.models.decoder import Decoder

Report = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes there are."""


def load_weights(decoder: Decoder, model_dir: Path, report: Report) -> None:
    """Fill every parameter of `decoder` from the safetensors files of a model folder.

    Element types are converted on the way; see `reader` for the memory that it takes.

    Raises:
        LoadError: BadWeights, naming the file, the tensor and what is wrong with it.
    """
    stored = _by_our_names(open_checkpoint(model_dir), decoder)
    targets = checkpoint_targets(decoder, stored)
    _check(stored, targets, model_dir)
    done, total = 0, sum(tensor.bytes for tensor in stored.values())
    report(done, total)

    def progressed(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    placed = [(tensor, targets[name]) for name, tensor in stored.items()]
    reader.fill(placed, next(decoder.parameters()).device, progressed)


def checkpoint_targets(decoder: Decoder, stored: Collection[str]) -> dict[str, torch.Tensor]:
    """Return where each tensor of a checkpoint goes: a parameter, or a part of one that is not stored as a whole."""
    targets: dict[str, torch.Tensor] = {}
    for module_name, module in decoder.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            whole = _full_name(f"{module_name}.{kind}")
            if isinstance(module, PartialWeights) and whole not in stored:
                parts = module.parts(module_name, kind, parameter.data)
                targets |= {_full_name(name): part for name, part in parts.items()}
            else:
                targets[whole] = parameter.data
    return targets


def _by_our_names(tensors: Iterable[StoredTensor], decoder: Decoder) -> dict[str, StoredTensor]:
    """Return the tensors to read by the names that our modules give them."""
    ours: dict[str, StoredTensor] = {}
    for tensor in tensors:
        name = _full_name(".".join(decoder.renamed.get(part, part) for part in tensor.name.split(".")))
        if name in ours:
            raise bad_weights(tensor.path, f"holds tensor {tensor.name}, which is {ours[name].name} again")
        if not _is_redundant(name, decoder):
            ours[name] = tensor
    return ours


def _full_name(name: str) -> str:
    """Return the name as language models have it; embedding models are stored without the leading `model.`."""
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _is_redundant(name: str, decoder: Decoder) -> bool:
    """Tell whether a tensor repeats what the configuration gives: rotary tables of old files, a tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (decoder.config.tie_word_embeddings and name == "lm_head.weight")


def _check(stored: Mapping[str, StoredTensor], targets: Mapping[str, torch.Tensor], model_dir: Path) -> None:
    """Refuse a checkpoint that does not fill the targets exactly."""
    if missing := targets.keys() - stored.keys():
        raise bad_weights(model_dir, f"no file holds {some_of(missing)}, which config.json calls for")
    if unexpected := stored.keys() - targets.keys():
        names = [stored[name].name for name in unexpected]
        files = {str(stored[name].path) for name in unexpected}
        raise bad_weights(min(files), f"holds {some_of(names)}, which config.json has no place for")
    for name, tensor in stored.items():
        if tensor.shape != tuple(targets[name].shape):
            expected = list(targets[name].shape)
            problem = f"tensor {tensor.name} has shape {list(tensor.shape)}; config.json calls for {expected}"
            raise bad_weights(tensor.path, problem)
