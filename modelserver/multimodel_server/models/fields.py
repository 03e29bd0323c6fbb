"""The JSON objects of a model folder, read field by field into types."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError


class Fields:
    """One JSON object of a file; every complaint names the file and the field."""

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source = source
        self.values = values

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Return the object in a file; raises `LoadError` (BadConfiguration) where there is none."""
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}); a model folder needs this file"
            raise LoadError(FailureReason.BAD_CONFIGURATION, message) from error
        except ValueError as error:
            raise LoadError(FailureReason.BAD_CONFIGURATION, f"{path}: is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise LoadError(FailureReason.BAD_CONFIGURATION, f"{path}: must hold a JSON object")
        return cls(str(path), values)

    def error(self, name: str, problem: str) -> LoadError:
        """Return the failure to raise for a field."""
        found = f"is {json.dumps(self.values[name])}" if name in self.values else "is missing"
        return LoadError(FailureReason.BAD_CONFIGURATION, f"{self.source}: {name} {found}; it {problem}")

    def architecture(self) -> str:
        """Return the class name of the model, the only one of `architectures`."""
        names = self.values.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise self.error("architectures", "must be a list of one class name")
        return names[0]

    def count(self, name: str, *, default: int | None = None) -> int:
        """Return a positive whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, "must be a whole number of at least 1")
        return value

    def index(self, name: str, *, default: int) -> int:
        """Return a whole number of at least zero."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(name, "must be a whole number of at least 0")
        return value

    def positive(self, name: str, *, default: float | None = None) -> float:
        """Return a finite number above zero."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(name, "must be a number above 0")
        return float(value)

    def optional_count(self, name: str, *, default: int | None = None) -> int | None:
        """Return a positive whole number, or None where the file says null; an absent field means `default`."""
        if name not in self.values:
            return default
        return None if self.values[name] is None else self.count(name)

    def optional_positive(self, name: str, *, default: float | None = None) -> float | None:
        """Return a finite number above zero, or None where the file says null; an absent field means `default`."""
        if name not in self.values:
            return default
        return None if self.values[name] is None else self.positive(name)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a truth value."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def text(self, name: str, *, default: str) -> str:
        """Return a string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a string")
        return value

    def choice(self, name: str, known: Collection[str], *, default: str) -> str:
        """Return one of the known words."""
        value = self.text(name, default=default)
        if value not in known:
            raise self.error(name, f"must be {_either(known)}")
        return value

    def choices(self, name: str, known: Collection[str], length: int) -> tuple[str, ...]:
        """Return a list of so many known words."""
        problem = f"must be a list of {length}, each {_either(known)}"
        return self._list(name, lambda item: isinstance(item, str) and item in known, problem, length)

    def flags(self, name: str, length: int) -> tuple[bool, ...]:
        """Return a list of so many truth values, which may be written as 0 and 1."""
        values = self._list(name, lambda item: item in (0, 1), f"must be a list of {length}, each 0 or 1", length)
        return tuple(bool(value) for value in values)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """Return a list of so many finite numbers above zero."""
        problem = f"must be a list of {length} numbers above 0"
        values = self._list(name, lambda item: type(item) in (int, float) and 0 < item < float("inf"), problem, length)
        return tuple(float(value) for value in values)

    def indices(self, name: str) -> frozenset[int]:
        """Return the layer numbers in a list; absent means none."""
        if self.values.get(name) is None:
            return frozenset()
        return frozenset(
            self._list(name, lambda item: type(item) is int and item >= 0, "must be a list of layer numbers")
        )

    def part(self, name: str) -> "Fields | None":
        """Return an object inside this one, or None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return Fields(f"{self.source}: {name}", value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def _list(
        self, name: str, accepts: Callable[[Any], bool], problem: str, length: int | None = None
    ) -> tuple[Any, ...]:
        values = self.values.get(name)
        if not isinstance(values, list) or length not in (None, len(values)) or not all(map(accepts, values)):
            raise self.error(name, problem)
        return tuple(values)


def _either(words: Collection[str]) -> str:
    return " or ".join(json.dumps(word) for word in words)
