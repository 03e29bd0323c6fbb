"""Puts the entry of an API key where routers find it: in a Secret, or in a folder."""

import base64
import os
from pathlib import Path

import yaml

from multimodel_api.keys import KeyEntry


def entry_document(entry: KeyEntry) -> str:
    """Return an entry as one line of JSON."""
    return entry.model_dump_json()


def secret_manifest(secret: str, name: str, entry: KeyEntry) -> str:
    """Return the YAML of a Secret that holds one entry; applied on the server's side, it joins those that are there."""
    document = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret},
        "type": "Opaque",
        "data": {name: base64.b64encode(entry_document(entry).encode()).decode()},
    }
    return yaml.safe_dump(document, sort_keys=False)


def write_entry(folder: Path, name: str, entry: KeyEntry) -> Path:
    """Write an entry into a folder, which is made if need be, and return its file; nobody else may read it.

    Raises:
        FileExistsError: a key of this name is there.
        OSError: it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / name
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600), "w") as opened:
        opened.write(entry_document(entry) + "\n")
    return file
