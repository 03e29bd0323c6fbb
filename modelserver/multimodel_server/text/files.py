"""Reading a model folder's JSON files into types; every error names the file, the field and the value."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError

Document = TypeVar("Document", bound=BaseModel)


def read_document(path: Path, document: type[Document]) -> Document:
    """Return the file as `document`, all defaults if there is no such file; raises `LoadError`."""
    if not path.exists():
        return document()
    try:
        return document.model_validate(_read_object(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise bad_configuration(f"{path}: {field}: {first['msg']} (got {first['input']!r}).") from error


def read_text(path: Path) -> str:
    """Return the file's text; raises `LoadError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise bad_configuration(f"{path} cannot be read: {error}.") from error


def bad_configuration(message: str) -> LoadError:
    """Return the failure of a model whose files or settings are wrong."""
    return LoadError(FailureReason.BAD_CONFIGURATION, message)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise bad_configuration(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise bad_configuration(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value
