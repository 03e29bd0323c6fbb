"""Weights from safetensors files straight into a decoder's parameters, strictly: nothing missing, nothing over."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
from multimodel_server.layers.linear import PartialWeights
from multimodel_server.models.decoder import Decoder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of an element, for the element types that can be loaded."""

Report = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes there are."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an open safetensors file."""

    name: str
    path: Path
    file: Any
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size of the data in the file."""
        return torch.Size(self.shape).numel() * BYTES_OF[self.dtype]

    def read(self) -> torch.Tensor:
        """Return the data, on the CPU, in the file's element type."""
        tensor: torch.Tensor = self.file.get_tensor(self.name)
        return tensor


def load_weights(decoder: Decoder, model_dir: Path, report: Report) -> None:
    """Fill every parameter of `decoder` from the safetensors files of a model folder.

    One tensor at a time is in memory besides the parameters. Element types are converted on the way.

    Raises:
        LoadError: BadWeights, naming the file, the tensor and what is wrong with it.
    """
    with ExitStack() as open_files:
        stored = _by_our_names(_open_checkpoint(model_dir, open_files), decoder)
        targets = checkpoint_targets(decoder, stored)
        _check(stored, targets, model_dir)
        done, total = 0, sum(tensor.bytes for tensor in stored.values())
        report(done, total)
        for name, tensor in stored.items():
            targets[name].copy_(tensor.read())
            done += tensor.bytes
            report(done, total)


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
            raise _bad_weights(tensor.path, f"holds tensor {tensor.name}, which is {ours[name].name} again")
        if not _is_redundant(name, decoder):
            ours[name] = tensor
    return ours


def _full_name(name: str) -> str:
    """Return the name as language models have it; embedding models are stored without the leading `model.`."""
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _is_redundant(name: str, decoder: Decoder) -> bool:
    """Tell whether a tensor repeats what the configuration gives: rotary tables of old files, a tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (decoder.config.tie_word_embeddings and name == "lm_head.weight")


def _open_checkpoint(model_dir: Path, open_files: ExitStack) -> list[StoredTensor]:
    """Return every tensor of a model folder's files."""
    if (model_dir / SINGLE_FILE).exists():
        return _open_file(model_dir / SINGLE_FILE, open_files)
    index = model_dir / INDEX_FILE
    if not index.exists():
        raise _bad_weights(model_dir, f"has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors files are read")
    file_of = _read_index(index)
    stored: dict[str, StoredTensor] = {}
    for file_name in dict.fromkeys(file_of.values()):
        stored |= {tensor.name: tensor for tensor in _open_file(model_dir / file_name, open_files)}
    for name, file_name in file_of.items():
        if name not in stored:
            raise _bad_weights(model_dir / file_name, f"lacks tensor {name}, which {INDEX_FILE} places there")
    return list(stored.values())


def _read_index(path: Path) -> dict[str, str]:
    """Return the file name of each tensor."""
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad_weights(path, f"cannot be read: {error}") from error
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not file_of:
        raise _bad_weights(path, "has no weight_map")
    for name, file_name in file_of.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise _bad_weights(path, f"places tensor {name} in {file_name!r}; it must be a file of the model folder")
    return file_of


def _open_file(path: Path, open_files: ExitStack) -> list[StoredTensor]:
    """Return the tensors of one safetensors file; its header is checked against its length."""
    try:
        file = open_files.enter_context(safe_open(path, framework="pt", device="cpu"))
        headers = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118  (not a mapping)
    except FileNotFoundError as error:
        raise _bad_weights(path, "is missing; download the model again") from error
    except (OSError, SafetensorError) as error:
        raise _bad_weights(path, f"is corrupt or cut short ({error}); download the model again") from error
    tensors = [StoredTensor(name, path, file, tuple(part.get_shape()), part.get_dtype()) for name, part in headers]
    for tensor in tensors:
        if tensor.dtype not in BYTES_OF:
            known = ", ".join(BYTES_OF)
            raise _bad_weights(path, f"tensor {tensor.name} is {tensor.dtype}; the known element types are {known}")
    return tensors


def _check(stored: Mapping[str, StoredTensor], targets: Mapping[str, torch.Tensor], model_dir: Path) -> None:
    """Refuse a checkpoint that does not fill the targets exactly."""
    if missing := targets.keys() - stored.keys():
        raise _bad_weights(model_dir, f"no file holds {_some_of(missing)}, which config.json calls for")
    if unexpected := stored.keys() - targets.keys():
        names = [stored[name].name for name in unexpected]
        files = {str(stored[name].path) for name in unexpected}
        raise _bad_weights(min(files), f"holds {_some_of(names)}, which config.json has no place for")
    for name, tensor in stored.items():
        if tensor.shape != tuple(targets[name].shape):
            expected = list(targets[name].shape)
            problem = f"tensor {tensor.name} has shape {list(tensor.shape)}; config.json calls for {expected}"
            raise _bad_weights(tensor.path, problem)


def _some_of(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"tensor {first}" + (f" and {len(rest)} more" if rest else "")


def _bad_weights(path: Path | str, problem: str) -> LoadError:
    return LoadError(FailureReason.BAD_WEIGHTS, f"{path}: {problem}")
