"""How the operator does with many MultiModels, on a real control plane: children, edits, a restart, an outage.

For each size: MultiModels of three models are created at once, and the time is taken from the creation of each to the
creation of its last child, as a watch sees them. At the largest size one MultiModel after the other is edited, the
operator is started anew (and must write nothing), and, if asked, the API server answers 503 for a while. The controller
manager rests, unless told otherwise: what it makes of the children costs more than the children. There is no node to
run pods. The processor time of the operator and of the control plane is shown, as the elapsed time depends on who else
uses the machine. Prints a table, the bars, and, last, one JSON line.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from operator_world import (
    CHILDREN,
    MULTIMODELS,
    Api,
    Running,
    births,
    connected,
    control_plane_cpu,
    controllers_resting,
    cpu_seconds,
    max_seqs,
    multimodel,
    operator,
    until,
)
from rich.console import Console
from rich.table import Table

from multimodel_testbed.control_plane import DEFAULT_CONTROLLERS, ControlPlane, control_plane
from multimodel_testbed.faults import controllers_on, faulty_way

ROOT = Path(__file__).parents[1]
CRD = ROOT / "crds" / "multimodel.dev_multimodels.yaml"
BARS = {100: 20.0, 1000: 180.0}
EDIT_BAR = 1.0
QUIET_SECONDS = 15.0
IDLE_SECONDS = 50.0
CREATIONS_AT_ONCE = 16


@dataclass
class Created:
    """What a size has shown; times in seconds."""

    multimodels: int
    children_each: int
    total: float
    p50: float
    p99: float
    requests_each: float
    operator_cpu: float
    control_plane_cpu: float
    rss_mib: float
    load_average: float


@dataclass
class Result:
    """What the whole run has shown; times in seconds."""

    sizes: list[Created] = field(default_factory=list)
    edits: list[float] = field(default_factory=list)
    restart_seen: float = 0.0
    restart_looked: float = 0.0
    restart_writes: dict[str, int] = field(default_factory=dict)
    idle_cpu_percent: float = 0.0
    outage: float = 0.0
    outage_mended: float = 0.0


async def children_each(api: Api, namespace: str) -> int:
    """Make one MultiModel, and count its children when no more come."""
    async with births(api, namespace) as seen:
        await api.call("POST", MULTIMODELS.format(namespace), multimodel("first"))
        await until(lambda: seen.count["first"] and time.monotonic() - seen.last["first"] > 3, "children")
        return seen.count["first"]


async def create(api: Api, running: Running, number: int, each: int) -> Created:
    """Create so many MultiModels at once, and wait for their children."""
    namespace = f"bench-{number}"
    await api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    before, cpu_before, plane_before = await running.numbers(), cpu_seconds(running.process), control_plane_cpu()
    began: dict[str, float] = {}
    gate = asyncio.Semaphore(CREATIONS_AT_ONCE)

    async def make(name: str) -> None:
        async with gate:
            began[name] = time.monotonic()
            await api.call("POST", MULTIMODELS.format(namespace), multimodel(name))

    async with births(api, namespace) as seen:
        start = time.monotonic()
        await asyncio.gather(*(make(f"mm-{index}") for index in range(number)))
        await until(lambda: sum(seen.count.values()) >= number * each, "all children")
    waits = sorted(seen.last[name] - began[name] for name in began)
    spent = await running.numbers() - before
    return Created(
        multimodels=number,
        children_each=each,
        total=max(seen.last.values()) - start,
        p50=statistics.median(waits),
        p99=waits[min(len(waits) - 1, int(len(waits) * 0.99))],
        requests_each=spent["api_requests_total"] / number,
        operator_cpu=cpu_seconds(running.process) - cpu_before,
        control_plane_cpu=control_plane_cpu() - plane_before,
        rss_mib=running.process.memory_info().rss / 2**20,
        load_average=os.getloadavg()[0],
    )


async def edit(api: Api, namespace: str, name: str, number: int) -> float:
    """Return the seconds from an edit of one MultiModel to the edit of its Deployment, as the API server has it."""
    path = f"{CHILDREN['deployments']}/namespaces/{namespace}/deployments"
    only = {"fieldSelector": f"metadata.name={name}-model-m0"}
    _, version = await api.list(f"{path}?fieldSelector={only['fieldSelector']}")
    began = time.monotonic()
    await api.call("PATCH", *max_seqs(namespace, name, number))
    async for event in api.watch(path, version, "application/json", **only):
        if f"--max-seqs={number}" in json.dumps(event):
            return time.monotonic() - began
    raise SystemExit(f"the watch of {path} ended")


async def quiet(running: Running) -> None:
    """Wait until nothing has changed for a while: the controller manager has made the pods, and all is told."""
    last, since = (-1.0, -1.0), time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        await asyncio.sleep(1)
        numbers = await running.numbers()
        now = numbers["writes_total"], numbers["seen_objects"]
        if now != last:
            last, since = now, time.monotonic()


async def idle_cpu_percent(running: Running) -> float:
    """Return how much of a core an operator takes that has nothing to do but to look again."""
    before = cpu_seconds(running.process)
    await asyncio.sleep(IDLE_SECONDS)
    return 100 * (cpu_seconds(running.process) - before) / IDLE_SECONDS


async def measure_restart(running: Running, number: int, result: Result) -> None:
    """Wait until a new operator has looked at everything twice, and count its writes."""

    async def looked() -> bool:
        return (await running.numbers())["reconcile_seconds_count"] >= number

    async def seen() -> bool:
        return (await running.numbers())["multimodels"] >= number

    result.restart_seen = await until(seen, "everything seen")
    result.restart_looked = result.restart_seen + await until(looked, "everything looked at")
    await quiet(running)
    result.restart_writes = await running.writes()


async def measure_outage(api: Api, way: Any, namespace: str, result: Result, seconds: float) -> None:
    """Let the API server answer 503 to the operator, and to controllers that go its way; edit meanwhile.

    Tells how long after its return the edit is done.
    """
    way.status = 503
    await asyncio.sleep(seconds - 1)
    await api.call("PATCH", *max_seqs(namespace, "mm-0", 5))
    await asyncio.sleep(1)
    way.heal()
    path = f"{CHILDREN['deployments']}/namespaces/{namespace}/deployments/mm-0-model-m0"

    async def edited() -> bool:
        return "--max-seqs=5" in json.dumps(await api.call("GET", path))

    result.outage, result.outage_mended = seconds, await until(edited, "the edit made in the outage")


async def measure(plane: ControlPlane, folder: Path, chosen: argparse.Namespace) -> Result:
    result = Result()
    largest = max(chosen.sizes)
    async with connected(plane) as api:
        with operator(plane.kubeconfig, folder / "operator.log") as running:
            each = await children_each(api, "default")
            for number in sorted(chosen.sizes):
                result.sizes.append(await create(api, running, number, each))
                print(result.sizes[-1], file=sys.stderr)
                await quiet(running)
            for number in range(chosen.edits):
                result.edits.append(await edit(api, f"bench-{largest}", f"mm-{number % largest}", 7 + number))
            await quiet(running)
            result.idle_cpu_percent = await idle_cpu_percent(running)
        with faulty_way(plane, folder) as way, operator(way.kubeconfig, folder / "again.log") as running:
            await measure_restart(running, sum(chosen.sizes) + 1, result)
            if chosen.outage_seconds:
                with controllers_on(plane, way) if chosen.with_controllers else nullcontext():
                    await measure_outage(api, way, f"bench-{largest}", result, chosen.outage_seconds)
    return result


def show(result: Result) -> None:
    table = Table(
        "MultiModels",
        "all children s",
        "p50 s",
        "p99 s",
        "requests each",
        "CPU s",
        "control plane CPU s",
        "RSS MiB",
        "load",
        "bar",
    )
    for size in result.sizes:
        bar = BARS.get(size.multimodels)
        verdict = "" if bar is None else f"{'kept' if size.total < bar else 'MISSED'} (< {bar:.0f} s)"
        times = [f"{number:.2f}" for number in (size.total, size.p50, size.p99)]
        rest = [
            f"{size.requests_each:.1f}",
            f"{size.operator_cpu:.1f}",
            f"{size.control_plane_cpu:.1f}",
            f"{size.rss_mib:.0f}",
        ]
        table.add_row(str(size.multimodels), *times, *rest, f"{size.load_average:.1f}", verdict)
    console = Console(width=120)
    console.print(table)
    if result.edits:
        worst = max(result.edits)
        verdict = "kept" if worst < EDIT_BAR else "MISSED"
        console.print(f"edit to patch: p50 {statistics.median(result.edits):.2f} s, worst {worst:.2f} s: {verdict}")
    verdict = "kept" if not result.restart_writes else "MISSED"
    console.print(
        f"restart: seen in {result.restart_seen:.1f} s, looked at in {result.restart_looked:.1f} s, "
        f"{sum(result.restart_writes.values())} writes: {verdict}"
    )
    console.print(
        f"at rest, with {result.sizes[-1].multimodels} MultiModels: {result.idle_cpu_percent:.0f} % of a core"
    )
    if result.outage:
        console.print(
            f"503 for {result.outage:.0f} s: an edit made meanwhile was done {result.outage_mended:.1f} s later"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 100, 1000], help="MultiModels created at once")
    parser.add_argument("--edits", type=int, default=10, help="edits measured at the largest size")
    parser.add_argument(
        "--with-controllers",
        action="store_true",
        help="let the controller manager work all the time, and suffer the outage",
    )
    parser.add_argument("--outage-seconds", type=float, default=0, help="length of the outage; 0 for none")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, control_plane(DEFAULT_CONTROLLERS) as plane:
        plane.define(CRD)
        with controllers_resting(not chosen.with_controllers):
            result = asyncio.run(measure(plane, Path(folder), chosen))
    show(result)
    print(json.dumps({"bench": "operator", **asdict(result)}))


if __name__ == "__main__":
    main()
