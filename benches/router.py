"""What a router costs: the same streams without one, through ours, a bare relay, nginx, SGLang's, vLLM's and LiteLLM's.

The router under test has core 0; upstream and clients (one Go process, load/) share core 1. Up to 256 streams a chunk
comes every 20 ms; beyond, the pause grows with their number, so that the offered load stays at 12,800 chunks/s, which
upstream and clients can do. Each way is started anew for each repeat, and the ways alternate. Peers are fetched once
into ~/.cache/multimodel/peers. Prints tables, the bars for ours, and, last, one JSON line.
"""

import argparse
import json
import resource
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import router_load as load
import router_peers as peers
from rich.console import Console
from router_load import Cell
from router_report import Idle, Observed, Report

CELLS = {
    1: Cell(1, chunks=5, interval=0.02, ramp=0.2, measure=2),
    32: Cell(32, chunks=50, interval=0.02, ramp=1, measure=2),
    256: Cell(256, chunks=100, interval=0.02, ramp=2, measure=3),
    1024: Cell(1024, chunks=25, interval=0.08, ramp=2, measure=3),
    4096: Cell(4096, chunks=25, interval=0.32, ramp=8, measure=3),
}
WARM_UP = Cell(8, chunks=10, interval=0.02, ramp=0.2, measure=0.8)
MEASURED_ONCE = 4096
"""So many streams take long to begin; they are measured in the first repeat alone."""

ENDLESS = 1_000_000
ONE_BY_ONE = Cell(256, chunks=ENDLESS, window=1, ramp=0.25)
"""The next chunk of a stream is written when its client has read the last: no two share a read or a write."""

FLOOD = Cell(64, chunks=ENDLESS, ramp=0.25)
"""Chunks as fast as the connections take them: many share a read."""

OPEN_FILES = 40_000
SAMPLE_SECONDS = 0.05
TABLE_WIDTH = 110
HOLD_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    ways: Sequence[str]
    streams: Sequence[int]
    repeats: int


def measure_way(way: str, plan: Plan, repeat: int, report: Report) -> None:
    """Start a way and measure all that is asked of it in this repeat."""
    with peers.WAYS[way]() as running:
        load.measure(running.control_port, running.target, WARM_UP)
        for streams in plan.streams:
            if (repeat and streams >= MEASURED_ONCE) or report.gave_up(way, streams):
                continue
            report.add(way, streams, observe(running, CELLS[streams]))
        if not report.gave_up(way, ONE_BY_ONE.streams):
            report.one_by_one.setdefault(way, []).append(observe(running, ONE_BY_ONE))
            if repeat == 0:
                report.flood[way] = observe(running, FLOOD)


def measure_idle(way: str, streams: int, report: Report) -> None:
    """Start a way, and see what memory it takes for streams that wait, and whether their leaving is passed on."""
    with peers.WAYS[way]() as running:
        load.measure(running.control_port, running.target, WARM_UP)
        report.idle[way] = hold_idle(running, streams)


def observe(running: peers.Running, cell: Cell) -> Observed:
    """Run one measurement, and see what processor time the router takes for it."""
    spent = cpu_seconds(running)
    seen = load.measure(running.control_port, running.target, cell)
    return Observed(cell, seen, cpu_seconds(running) - spent)


def hold_idle(running: peers.Running, streams: int) -> Idle:
    """Open streams that wait after their first chunk, and return the most memory that the router held meanwhile."""
    before = rss_bytes(running)
    most = before
    ended = threading.Event()

    def sample() -> None:
        nonlocal most
        while not ended.wait(SAMPLE_SECONDS):
            most = max(most, rss_bytes(running))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        cell = Cell(streams, chunks=2, interval=HOLD_SECONDS, ramp=streams / 800, measure=1)
        seen = load.measure(running.control_port, running.target, cell)
    finally:
        ended.set()
        sampler.join()
    return Idle(seen.most_open, before, most, None if seen.left_behind else seen.close_ms)


def cpu_seconds(running: peers.Running) -> float:
    """Return the processor time that the router has taken since its start."""
    times = [process.cpu_times() for process in running.processes()]
    return float(sum(time.user + time.system for time in times))


def rss_bytes(running: peers.Running) -> int:
    """Return the memory that the router holds."""
    return sum(int(process.memory_info().rss) for process in running.processes())


def allow_open_files() -> None:
    """Raise the limit of open files for everything that is started; raises SystemExit where it stays too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else max(hard, OPEN_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        needed = 2 * max(CELLS) + 1000
        if hard < needed:
            raise SystemExit(f"the limit of open files is {hard}; raise it: ulimit -Hn {needed}") from None


def parse() -> Plan:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(peers.WAYS), default=list(peers.WAYS), metavar="WAY")
    parser.add_argument("--streams", nargs="+", type=int, choices=list(CELLS), default=list(CELLS), metavar="N")
    parser.add_argument("--repeats", type=int, default=3, help="medians are taken over them (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="direct, ours and nginx, up to 256 streams, once")
    chosen = parser.parse_args()
    if chosen.quick:
        return Plan(["direct", "ours", "nginx"], [1, 32, 256], 1)
    return Plan(chosen.ways, sorted(chosen.streams), chosen.repeats)


def main() -> None:
    """Measure and print."""
    plan = parse()
    if (psutil.cpu_count() or 1) <= load.CORE:
        raise SystemExit("two cores are needed: one for the router, one for upstream and clients")
    allow_open_files()
    load.build()
    report = Report()
    for repeat in range(plan.repeats):
        for way in plan.ways:
            if way in report.unavailable:
                continue
            try:
                if repeat == 0 and way != "direct":
                    measure_idle(way, max(plan.streams), report)
                measure_way(way, plan, repeat, report)
            except peers.UnavailableError as reason:
                report.unavailable[way] = str(reason)
    console = Console(width=TABLE_WIDTH)
    for table in report.tables(plan.ways):
        console.print(table)
    for line in report.notes():
        console.print(line, markup=False, highlight=False)
    print(json.dumps({"bench": "router", **report.document()}))


if __name__ == "__main__":
    main()
