"""What the router benchmark has seen: medians over the repeats, tables, and the bars that our router has to clear."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from router_load import Cell, Seen

KEPT_UP = 0.5
"""A way that passes on less than this share of the offered chunks is not asked to hold more streams."""

OPEN = 0.99
"""The share of streams that must be open at any time; the others may be between two answers."""

MOST_ERRORS_SHOWN = 160

PACED_CAPTION = (
    "first: ms from a request to its first chunk; lag: ms from a chunk's write to its read; CPU: of the router for a "
    "chunk; leave: ms from the clients' leaving until the upstream knows of the last"
)
LIMITS_CAPTION = (
    "chunks/s with one chunk of a stream on its way at a time, and the shares of the router's and of the load's core "
    "meanwhile; chunks/s as fast as connections take them; memory of a stream that waits, "
    "and of the router before; leave: as above, while the upstream is silent"
)


@dataclass(frozen=True, slots=True)
class Observed:
    """One measurement and the processor time of the router meanwhile."""

    cell: Cell
    seen: Seen
    cpu_seconds: float

    @property
    def cpu_us_per_chunk(self) -> float:
        """Processor time by the chunks that came, the streams' beginnings included."""
        return self.cpu_seconds / max(1, self.seen.all_chunks) * 1e6

    @property
    def cpu_share(self) -> float:
        """The router's share of its core."""
        return self.cpu_seconds / (self.cell.ramp + self.cell.measure)


@dataclass(frozen=True, slots=True)
class Idle:
    """The router's memory with streams that wait."""

    streams: int
    bytes_before: int
    bytes_most: int
    leave_ms: float | None
    """From the clients' leaving until the upstream knew of the last; None: it was not told while it was silent."""

    @property
    def kilobytes_per_stream(self) -> float:
        """Memory for each stream, in units of 1000 bytes."""
        return (self.bytes_most - self.bytes_before) / max(1, self.streams) / 1000


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that our router has to reach."""

    name: str
    value: float
    limit: float
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.value:,.2f} (bar {self.limit:,.2f})"


@dataclass
class Report:
    """Everything that was seen, by way."""

    cells: dict[str, dict[int, list[Observed]]] = field(default_factory=dict)
    one_by_one: dict[str, list[Observed]] = field(default_factory=dict)
    flood: dict[str, Observed] = field(default_factory=dict)
    idle: dict[str, Idle] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def add(self, way: str, streams: int, observed: Observed) -> None:
        """Keep one measurement of paced streams."""
        self.cells.setdefault(way, {}).setdefault(streams, []).append(observed)

    def gave_up(self, way: str, streams: int) -> bool:
        """Whether a way has already failed to keep up with as many streams or fewer."""
        return any(
            observed.seen.chunks_per_second < KEPT_UP * observed.cell.offered
            for fewer, several in self.cells.get(way, {}).items()
            for observed in several
            if fewer < streams
        )

    def tables(self, ways: Sequence[str]) -> list[Table]:
        """Return the tables of the ways that could be measured."""
        return [self._paced_table(ways), self._limits_table(ways)]

    def notes(self) -> list[str]:
        """Return what a reader of the tables has to know, and the bars."""
        missing = [f"{way}: not measured. {reason}" for way, reason in self.unavailable.items()]
        first = [
            f"{way}, {streams} streams, first error: {observed.seen.first_error[:MOST_ERRORS_SHOWN]}"
            for way, cells in self.cells.items()
            for streams, several in cells.items()
            for observed in several
            if observed.seen.errors
        ]
        late = [
            f"{way}: more than {max(cells)} streams not measured; it passed on less than half of the chunks of fewer."
            for way, cells in self.cells.items()
            if self.gave_up(way, max(cells) + 1)
        ]
        return [*missing, *late, *dict.fromkeys(first), *self._bottleneck(), *map(str, self.bars())]

    def bars(self) -> list[Bar]:
        """Return how our router fares; what was not measured has no bar."""
        found: list[Bar] = []
        if self._have(256, "ours", "direct", "nginx"):
            added = (self._ttft_p50("ours", 256) - self._ttft_p50("direct", 256)) / 1000
            found.append(_at_most("added first-chunk time p50 at 256 streams, ms", added, 0.5))
            ratio = self._lag_p50("ours", 256) / self._lag_p50("nginx", 256)
            found.append(_at_most("chunk lag p50 at 256 streams ÷ nginx's", ratio, 1.3))
        if "ours" in self.one_by_one:
            most = _median(self.one_by_one["ours"], lambda one: one.seen.chunks_per_second)
            found.append(Bar("chunks/s, one by one", most, 25_000, most >= 25_000))
        if self._have(1024, "ours", "sglang"):
            ours, theirs = self._ttft_p99("ours", 1024) / 1000, self._ttft_p99("sglang", 1024) / 1000
            found.append(_at_most("first-chunk time p99 at 1024 streams, ms; SGLang's is the bar", ours, theirs))
        if self._have(4096, "ours"):
            several = self.cells["ours"][4096]
            bad = sum(one.seen.errors + max(0, round(OPEN * 4096) - one.seen.most_open) for one in several)
            found.append(_at_most("errors at 4096 streams, and streams that were not open", bad, 0))
        if "ours" in self.idle:
            found.append(_at_most("memory of an idle stream, KB", self.idle["ours"].kilobytes_per_stream, 20))
        return found

    def document(self) -> dict[str, object]:
        """Return everything for the JSON line: medians, errors added up."""
        return {
            "paced": {way: {str(n): _medians(seen) for n, seen in cells.items()} for way, cells in self.cells.items()},
            "one_by_one": {way: _medians(several) for way, several in self.one_by_one.items()},
            "flood": {way: _medians([once]) for way, once in self.flood.items()},
            "idle": {way: _idle_document(idle) for way, idle in self.idle.items()},
            "unavailable": self.unavailable,
            "bars": {bar.name: {"value": round(bar.value, 3), "passed": bar.passed} for bar in self.bars()},
        }

    def _paced_table(self, ways: Sequence[str]) -> Table:
        table = Table("streams", "way", title="Streams at a pace: medians over the repeats", caption=PACED_CAPTION)
        for name in ("first p50", "first p99", "lag p50", "lag p99", "chunks/s", "errors", "CPU µs", "leave"):
            table.add_column(name, justify="right")
        for streams in sorted({streams for cells in self.cells.values() for streams in cells}):
            for way in ways:
                several = self.cells.get(way, {}).get(streams)
                if several:
                    table.add_row(str(streams), way, *_paced_row(_medians(several)))
            table.add_section()
        return table

    def _limits_table(self, ways: Sequence[str]) -> Table:
        table = Table("way", title="What a way can do at most", caption=LIMITS_CAPTION)
        for name in ("one by one", "its core", "load's core", "flood", "KB/stream", "start MB", "leave"):
            table.add_column(name, justify="right")
        for way in ways:
            cells = ["–"] * 7
            if way in self.one_by_one:
                most, flood = _medians(self.one_by_one[way]), self.flood[way].seen.chunks_per_second
                shares = (f"{most['cpu_share']:.0%}", f"{most['load_share']:.0%}")
                cells[:4] = [f"{most['chunks_per_second']:,.0f}", *shares, f"{flood:,.0f}"]
            if way in self.idle:
                idle = self.idle[way]
                cells[4:] = [f"{idle.kilobytes_per_stream:.1f}", f"{idle.bytes_before / 1e6:.0f}", _leaving(idle)]
            table.add_row(way, *cells)
        return table

    def _bottleneck(self) -> list[str]:
        if not {"direct", "ours"} <= set(self.one_by_one):
            return []
        alone, ours = _medians(self.one_by_one["direct"]), _medians(self.one_by_one["ours"])
        return [
            f"Upstream and clients alone: {alone['chunks_per_second']:,.0f} chunks/s one by one. At our router's most, "
            f"{ours['chunks_per_second']:,.0f}, they use {ours['load_share']:.0%} of their core and the router "
            f"{ours['cpu_share']:.0%} of its own: whoever is at 100 % is the bottleneck."
        ]

    def _have(self, streams: int, *ways: str) -> bool:
        return all(streams in self.cells.get(way, {}) for way in ways)

    def _ttft_p50(self, way: str, streams: int) -> float:
        return _median(self.cells[way][streams], lambda one: one.seen.ttft_p50)

    def _ttft_p99(self, way: str, streams: int) -> float:
        return _median(self.cells[way][streams], lambda one: one.seen.ttft_p99)

    def _lag_p50(self, way: str, streams: int) -> float:
        return _median(self.cells[way][streams], lambda one: one.seen.lag_p50)


def _at_most(name: str, value: float, limit: float) -> Bar:
    return Bar(name, value, limit, value <= limit)


def _median(several: Iterable[Observed], of: Callable[[Observed], float]) -> float:
    return statistics.median(of(one) for one in several)


def _medians(several: Sequence[Observed]) -> dict[str, float]:
    """Return the medians of what is told about a way; errors are added up."""
    told: dict[str, Callable[[Observed], float]] = {
        "ttft_p50_ms": lambda one: one.seen.ttft_p50 / 1000,
        "ttft_p99_ms": lambda one: one.seen.ttft_p99 / 1000,
        "lag_p50_ms": lambda one: one.seen.lag_p50 / 1000,
        "lag_p99_ms": lambda one: one.seen.lag_p99 / 1000,
        "chunks_per_second": lambda one: one.seen.chunks_per_second,
        "most_open": lambda one: one.seen.most_open,
        "close_ms": lambda one: one.seen.close_ms,
        "cpu_us_per_chunk": lambda one: one.cpu_us_per_chunk,
        "cpu_seconds": lambda one: one.cpu_seconds,
        "cpu_share": lambda one: one.cpu_share,
        "load_share": lambda one: one.seen.load_share,
    }
    medians = {name: round(_median(several, of), 3) for name, of in told.items()}
    return medians | {"errors": sum(one.seen.errors for one in several)}


def _idle_document(idle: Idle) -> dict[str, float | None]:
    kilobytes = round(idle.kilobytes_per_stream, 2)
    return {"kilobytes_per_stream": kilobytes, "streams": idle.streams, "leave_ms": idle.leave_ms}


def _leaving(idle: Idle) -> str:
    return "never" if idle.leave_ms is None else f"{idle.leave_ms:.0f}"


def _paced_row(medians: dict[str, float]) -> list[str]:
    times = [f"{medians[name]:.2f}" for name in ("ttft_p50_ms", "ttft_p99_ms", "lag_p50_ms", "lag_p99_ms")]
    counts = [f"{medians['chunks_per_second']:,.0f}", f"{medians['errors']:.0f}"]
    return [*times, *counts, f"{medians['cpu_us_per_chunk']:.1f}", f"{medians['close_ms']:.0f}"]
