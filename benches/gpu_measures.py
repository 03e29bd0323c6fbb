"""What a row of the GPU benchmark is given, and what it tells: values beside the bars they are held to."""

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

COPY = "device copy"
MATMUL = "bf16 matrix product"
TO_DEVICE = "host to device"
SHOWN = 12
NAME_WIDTH = 60
HOST_GAP_US = 5.0
"""A pause between two kernels of one graph is shorter; in a longer one the device waits for the host."""


@dataclass(frozen=True)
class KernelTime:
    """What one kernel took in a step, on average."""

    name: str
    calls: float
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """An average step."""

    step_us: float
    busy_us: float
    """Some kernel ran."""
    launch_gaps_us: float
    host_gaps_us: float
    kernels: tuple[KernelTime, ...]
    """The longest first."""

    @property
    def lines(self) -> list[str]:
        """The profile as text."""
        head = (
            f"step {self.step_us:.0f} µs: kernels {self.busy_us:.0f}, pauses between them {self.launch_gaps_us:.0f}, "
            f"waiting for the host {self.host_gaps_us:.0f}"
        )
        rows = [f"{row.microseconds:9.1f} µs {row.calls:7.1f} x  {row.name}" for row in self.kernels[:SHOWN]]
        return [head, *rows]


@dataclass(frozen=True)
class Bar:
    """What a value must reach, or must not exceed."""

    sign: Literal["≥", "≤"]
    limit: float

    def kept(self, value: float) -> bool:
        """Tell whether a value is on the right side."""
        return {"≥": operator.ge, "≤": operator.le}[self.sign](value, self.limit)


@dataclass(frozen=True)
class Measure:
    """One value; `unit` "%" is a fraction of one."""

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    notes: tuple[str, ...] = ()
    profile: Profile | None = None
    """Where the time went, kernel by kernel, if anybody looked."""

    @property
    def missed(self) -> bool:
        """Whether there is a bar and the value is on the wrong side of it."""
        return self.bar is not None and not self.bar.kept(self.value)


@dataclass(frozen=True)
class Setting:
    """How a row is to measure, and the values that rows before it told, by their names."""

    device: Literal["cuda", "cpu"]
    tiny: bool
    quick: bool
    seen: Mapping[str, float] = field(default_factory=dict)

    def floor(self, name: str) -> float:
        """Return what the device can do at best; raises LookupError where the floors could not be measured."""
        if name not in self.seen:
            raise LookupError(f"nothing to compare with: {name} was not measured (row `floors`)")
        return self.seen[name]

    def shape(self, name: str) -> str:
        """Return which model to take where one of that shape is asked for."""
        return "tiny" if self.tiny else name


Tell = Callable[[Measure], None]


def average(spans: list[tuple[float, float, str]], steps: int) -> Profile:
    """Return the average step of (start, end, name) in microseconds, ordered by their starts."""
    totals: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    busy, gaps, reached = 0.0, [], spans[0][0]
    for start, end, name in spans:
        calls, spent = totals[name]
        totals[name] = calls + 1, spent + end - start
        gaps.append(max(0.0, start - reached))
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    ranked = sorted(totals.items(), key=lambda item: -item[1][1])
    return Profile(
        step_us=(reached - spans[0][0]) / steps,
        busy_us=busy / steps,
        launch_gaps_us=sum(gap for gap in gaps if gap < HOST_GAP_US) / steps,
        host_gaps_us=sum(gap for gap in gaps if gap >= HOST_GAP_US) / steps,
        kernels=tuple(KernelTime(name[:NAME_WIDTH], calls / steps, spent / steps) for name, (calls, spent) in ranked),
    )
