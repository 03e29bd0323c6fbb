"""What the GPU benchmark found, for eyes, for machines and for the log."""

import datetime as dt
import platform
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from gpu_measures import Measure, Setting
from rich.table import Table


@dataclass
class Report:
    """All that was told so far."""

    setting: Setting
    device: str
    measures: list[Measure] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a row ended without having told all, by its name."""

    @property
    def values(self) -> dict[str, float]:
        """Every value so far, by name."""
        return {measure.name: measure.value for measure in self.measures}

    @property
    def versions(self) -> str:
        """What the values hold for, besides the device."""
        names = ("torch", "triton", "transformers")
        found = [f"{name} {version}" for name in names if (version := _version(name))]
        return ", ".join([f"Python {platform.python_version()}", *found])

    def verdict(self, measure: Measure) -> str:
        """Return whether a bar was kept; tiny models are held to none."""
        if measure.bar is None or self.setting.tiny:
            return ""
        return "MISSED" if measure.missed else "kept"

    def line(self, measure: Measure) -> str:
        """Return one value as soon as it is known."""
        verdict = self.verdict(measure)
        tail = f" [{verdict}: {_bar(measure)}]" if verdict else ""
        return f"{measure.name}: {_value(measure)}{tail} ({'; '.join(measure.notes)})"

    def profiles(self) -> list[tuple[str, list[str]]]:
        """Return where the time goes wherever a bar was missed."""
        missed = [measure for measure in self.measures if self.verdict(measure) == "MISSED"]
        return [(measure.name, measure.profile.lines) for measure in missed if measure.profile is not None]

    def table(self) -> Table:
        """Return everything as a table."""
        table = Table("measure", "value", "bar", "", "notes", title=f"{self.device}; {self.versions}")
        for measure in self.measures:
            notes = "; ".join(measure.notes)
            table.add_row(measure.name, _value(measure), _bar(measure), self.verdict(measure), notes)
        for row, reason in self.failures.items():
            table.add_row(f"row {row}", "–", "", "FAILED", reason)
        return table

    def document(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {
            "bench": "gpu",
            "device": self.device,
            "versions": self.versions,
            "tiny": self.setting.tiny,
            "measures": [_document(measure, self.verdict(measure)) for measure in self.measures],
            "failures": self.failures,
        }

    def section(self) -> str:
        """Return everything as a section of the log."""
        lines = [f"## {dt.datetime.now(dt.UTC):%Y-%m-%d}: the GPU path on {self.device}", ""]
        lines += [
            f"`benches/gpu.py`; {self.versions}.",
            "",
            "| measure | value | bar | | notes |",
            "|---|---|---|---|---|",
        ]
        for measure in self.measures:
            cells = (measure.name, _value(measure), _bar(measure), self.verdict(measure), "; ".join(measure.notes))
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| row {row} | – | | **FAILED** | {reason} |" for row, reason in self.failures.items()]
        for name, profile in self.profiles():
            lines += ["", f"Where the time goes, {name}:", "", "```", *profile, "```"]
        return "\n".join(["", *lines, ""])


def _value(measure: Measure) -> str:
    return _number(measure.value, measure.unit)


def _bar(measure: Measure) -> str:
    return "" if measure.bar is None else f"{measure.bar.sign} {_number(measure.bar.limit, measure.unit)}"


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.1%}".replace("%", " %")
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _document(measure: Measure, verdict: str) -> dict[str, Any]:
    bar = None if measure.bar is None else [measure.bar.sign, measure.bar.limit]
    found = {"name": measure.name, "value": measure.value, "unit": measure.unit, "bar": bar, "verdict": verdict}
    profile = None if measure.profile is None else measure.profile.lines
    return {**found, "notes": measure.notes, "profile": profile}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
