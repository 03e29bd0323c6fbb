"""Says in words what is wrong with a document: the field, its value, what was expected, and what to write instead."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from multimodel.labels import dns_label
from multimodel_api.document import DNS_LABEL

Location = tuple[int | str, ...]

_MAX_VALUE = 60


def problems(error: ValidationError, root: type[BaseModel]) -> list[tuple[Location, str]]:
    """Return each problem of a document of type `root`: where it is, and a sentence about it."""
    return [
        (details["loc"], _sentence(details["type"], details["msg"], details["input"], details["loc"], root))
        for details in error.errors(include_url=False, include_context=False)
    ]


def dotted(location: Location) -> str:
    """Return `spec.models[0].plain` for `("spec", "models", 0, "plain")`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _sentence(kind: str, message: str, value: object, location: Location, root: type[BaseModel]) -> str:
    if kind == "missing":
        return "is required; add it"
    if kind == "extra_forbidden":
        return f"is no known field{_suggestion(str(location[-1]), list(_fields_at(root, location[:-1])))}"
    if kind == "string_pattern_mismatch" and DNS_LABEL in message:
        return f"{value!r} is not a DNS label (lower-case letters, digits and '-'); write {dns_label(str(value))!r}"
    message = message.removeprefix("Value error, ")
    return message if isinstance(value, dict | list) else f"{message} (found {_shortened(value)})"


def _suggestion(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are: {', '.join(known)}"


def _fields_at(model: type[BaseModel] | None, location: Location) -> Iterator[str]:
    """Yield the names, as a document writes them, of the fields that may stand at a location."""
    for part in location:
        if isinstance(part, str) and model is not None:
            fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
            model = _model_within(fields.get(part))
    if model is not None:
        yield from (field.alias or name for name, field in model.model_fields.items())


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """Return the model type in an annotation such as `list[Model]` or `PagedAttention | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_within(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
