"""Reads and writes MultiModel manifests as YAML files."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from multimodel.validation import dotted, problems
from multimodel_api import names
from multimodel_api.manifest import MultiModel


class ManifestError(ValueError):
    """A manifest cannot be used; the message names the file, the field, its value and the fix."""


def read_manifest(file: Path) -> MultiModel:
    """Return the MultiModel in `file`.

    Raises:
        ManifestError: no such file, not YAML, or not a valid MultiModel.
    """
    try:
        document = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise ManifestError(f"{file}: not valid YAML: {_yaml_problem(error)}") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{file}: holds no resource; start with 'apiVersion: {names.API_VERSION}'")
    try:
        return MultiModel.model_validate(document)
    except ValidationError as error:
        lines = [f"{file}: {dotted(place) or 'the resource'}: {text}" for place, text in problems(error, MultiModel)]
        raise ManifestError("\n".join(lines)) from error


def read_text(file: Path) -> str:
    """Return the text of a file that a person named.

    Raises:
        ManifestError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"{file}: no such file in {Path.cwd()}; check the name") from error
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def to_yaml(resource: MultiModel) -> str:
    """Return the manifest of a MultiModel: what is set, in the order people write it."""
    body = resource.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{getattr(error, 'problem', None) or error}"
