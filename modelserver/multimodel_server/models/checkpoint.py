"""The safetensors files of a model folder: which tensors they hold, and where in the files these lie."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ELEMENT_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Those that can be loaded, by their names in the files."""
_LENGTH_BYTES = 8
"""A file begins with the length of its header, little-endian; the data follow the header."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Where its data begin, in bytes from the start of the file."""

    @property
    def bytes(self) -> int:
        """Size of the data in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def open_checkpoint(model_dir: Path) -> list[StoredTensor]:
    """Return every tensor of a model folder's files.

    Raises:
        LoadError: BadWeights, naming the file and what is wrong with it.
    """
    if (model_dir / SINGLE_FILE).exists():
        return _open_file(model_dir / SINGLE_FILE)
    index = model_dir / INDEX_FILE
    if not index.exists():
        raise bad_weights(model_dir, f"has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors files are read")
    file_of = _read_index(index)
    stored: dict[str, StoredTensor] = {}
    for file_name in dict.fromkeys(file_of.values()):
        stored |= {tensor.name: tensor for tensor in _open_file(model_dir / file_name)}
    for name, file_name in file_of.items():
        if name not in stored:
            raise bad_weights(model_dir / file_name, f"lacks tensor {name}, which {INDEX_FILE} places there")
    return list(stored.values())


def bad_weights(path: Path | str, problem: str) -> LoadError:
    """Return what is raised about a file or folder of weights."""
    return LoadError(FailureReason.BAD_WEIGHTS, f"{path}: {problem}")


def cut_short(path: Path, how: object) -> LoadError:
    """Return what is raised about a file that is not whole, or no safetensors file at all."""
    return bad_weights(path, f"is corrupt or cut short ({how}); download the model again")


def some_of(names: Iterable[str]) -> str:
    """Return words for one or more tensors."""
    first, *rest = sorted(names)
    return f"tensor {first}" + (f" and {len(rest)} more" if rest else "")


def _read_index(path: Path) -> dict[str, str]:
    """Return the file name of each tensor."""
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise bad_weights(path, f"cannot be read: {error}") from error
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not file_of:
        raise bad_weights(path, "has no weight_map")
    for name, file_name in file_of.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise bad_weights(path, f"places tensor {name} in {file_name!r}; it must be a file of the model folder")
    return file_of


def _open_file(path: Path) -> list[StoredTensor]:
    """Return the tensors of one safetensors file; the library checks its header, also against its length."""
    try:
        with safe_open(path, framework="pt", device="cpu"), path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise bad_weights(path, "is missing; download the model again") from error
    except (OSError, SafetensorError) as error:
        raise cut_short(path, error) from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in ELEMENT_TYPES:
            known = ", ".join(ELEMENT_TYPES)
            raise bad_weights(path, f"tensor {name} is {entry['dtype']}; the known element types are {known}")
    data = _LENGTH_BYTES + length
    return [
        StoredTensor(name, path, tuple(entry["shape"]), ELEMENT_TYPES[entry["dtype"]], data + entry["data_offsets"][0])
        for name, entry in header.items()
    ]
