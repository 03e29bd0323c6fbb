"""What clients lose when things break around the routers, at full length: nothing, or only what a fault took with it.

Two routers as processes over one real API server, with scripted stand-ins as pods. Every client is strict: it tries
another router only when a connection is refused. `--scale 0.05` makes all times shorter. Prints a table of what was
lost, the router's own share of the wait for cold models, and, last, one JSON line; fails if anything was lost.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from processes import ROOT

from multimodel_api import names
from multimodel_api.manifest import MultiModel
from multimodel_testbed.calls import Answer, Crowd, call
from multimodel_testbed.control_plane import control_plane
from multimodel_testbed.faults import FaultyWay, faulty_way
from multimodel_testbed.played_cluster import PlayedCluster, add_node, played_cluster
from multimodel_testbed.router_process import RouterProcess

STANDIN = ROOT / "tests" / "router" / "standin_server.py"
ROUTER = ROOT / "tests" / "router" / "played_router.py"
CRD = ROOT / "crds" / "multimodel.dev_multimodels.yaml"

AWAY_SECONDS = 600.0
UNAVAILABLE_SECONDS = 180.0
LOADS = (0.5, 5.0, 60.0)
HELD = (1, 10, 100)
STREAMS = 200
REPLICAS = 2
WAITING_LIMIT = 100
WAKE_BAR = 1.0
WORDS = "one two three four"


@dataclass
class Finding:
    """What became of the calls during one fault; `expected` losses are those that the fault took with it."""

    fault: str
    answers: Sequence[Answer]
    expected: Callable[[Answer], bool] = field(default=lambda _: False)
    remark: str = ""

    @property
    def lost(self) -> list[Answer]:
        """The calls that were not answered as they should have been."""
        return [answer for answer in self.answers if not answer.good and not self.expected(answer)]


@dataclass
class Bench:
    """What the faults are tried on."""

    cluster: PlayedCluster
    way: FaultyWay
    routers: list[RouterProcess]
    folder: Path
    scale: float

    @property
    def urls(self) -> list[str]:
        """The routers."""
        return [router.url for router in self.routers]

    async def command(self, action: str, model: str) -> None:
        """Unload or reload a model."""
        answer = await call(self.urls, {"model_id": model}, f"/v1/models/{action}")
        if answer.status != 200:
            raise RuntimeError(f"{action} {model}: {answer}")

    def replicas(self) -> list[str]:
        """The names of the pods of the model that stays loaded, but for those that have died."""
        of_steady = names.model_object_name("mm", "steady")
        pods = self.cluster.pods
        return [name for name in pods if name.startswith(of_steady) and pods[name].process.returncode is None]

    async def replace(self, pod: str) -> None:
        """Delete a pod that has died, and wait for the one that takes its place."""
        await self.cluster.api.request("DELETE", f"{self.cluster.path('pods')}/{pod}", json={"gracePeriodSeconds": 0})
        while len(self.replicas()) < REPLICAS:  # noqa: ASYNC110  (they are other processes)
            await asyncio.sleep(0.1)

    def crowd(self, size: int, **standin: Any) -> Crowd:
        """Clients of the model that stays loaded."""
        return Crowd(self.urls, size, chat("steady", stream=True, standin={"pause": 0.4, "resumable": True} | standin))


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": WORDS}]} | more


def load_name(seconds: float) -> str:
    return f"load-{seconds:g}".replace(".", "-")


async def api_server_silent(bench: Bench) -> Finding:
    """The API server answers nothing, for ten minutes."""
    crowd = bench.crowd(20)
    bench.way.hanging = True
    await asyncio.sleep(AWAY_SECONDS * bench.scale)
    bench.way.heal()
    return Finding("API server silent", await crowd.leave(), remark=f"{AWAY_SECONDS * bench.scale:.0f} s")


async def api_server_unavailable(bench: Bench) -> Finding:
    """The API server answers 503, for three minutes."""
    crowd = bench.crowd(20)
    bench.way.status = 503
    await asyncio.sleep(UNAVAILABLE_SECONDS * bench.scale)
    bench.way.heal()
    return Finding("API server answers 503", await crowd.leave(), remark=f"{UNAVAILABLE_SECONDS * bench.scale:.0f} s")


async def servers_killed(bench: Bench) -> Finding:
    """Model servers die under their streams, before and after the first byte."""
    answers: list[Answer] = []
    for after in (0, 3):
        script = {"fault": "break_first"} if after == 0 else {"fault": "break_mid", "after": [after]}
        once = bench.folder / f"once-{after}"
        body = chat("steady", stream=True, standin=script | {"resumable": True, "once": str(once)})
        answers.append(await call(bench.urls, body))
    crowd = bench.crowd(20)
    await asyncio.sleep(2)
    victim = bench.replicas()[0]
    bench.cluster.pods[victim].process.kill()
    await asyncio.sleep(4)
    await bench.replace(victim)
    return Finding("model server killed", [*answers, *await crowd.leave()], remark="20 streams; one of two replicas")


async def server_silent(bench: Bench) -> Finding:
    """A model server's host stops answering."""
    crowd = bench.crowd(20)
    await asyncio.sleep(2)
    stopped = bench.cluster.pods[bench.replicas()[0]].process
    stopped.send_signal(signal.SIGSTOP)
    await asyncio.sleep(30)
    answers = await crowd.leave()
    stopped.send_signal(signal.SIGCONT)
    return Finding("half-open TCP", answers, remark=f"longest stream {max(a.seconds for a in answers):.0f} s")


async def rolling_restart(bench: Bench) -> Finding:
    """The routers are restarted one after the other under many streams."""
    crowd = bench.crowd(STREAMS)
    await asyncio.sleep(3)
    for router in bench.routers:
        await router.stop()
        await router.start(ready_endpoints=1)
    answers = await crowd.leave()
    return Finding("rolling restart", answers, remark=f"{STREAMS} streams at once")


async def router_killed(bench: Bench) -> Finding:
    """One of two routers is killed: its own streams are gone, and nothing else."""
    crowd = bench.crowd(40)
    await asyncio.sleep(3)
    victim = bench.routers[0]
    await victim.kill()
    fresh = await call(bench.urls, chat("steady"))
    answers = await crowd.leave()
    await victim.start(ready_endpoints=1)
    own = sum(not answer.good for answer in answers)
    remark = f"its own {own} streams; a new call took {fresh.seconds:.2f} s"
    return Finding("router killed", [*answers, fresh], lambda answer: answer.url == victim.url, remark)


async def burst(bench: Bench) -> Finding:
    """More requests than the waiting room holds for a cold model."""
    body = chat(load_name(LOADS[1]))
    answers = await asyncio.gather(*(call(bench.urls[:1], body) for _ in range(WAITING_LIMIT + 20)))
    refused = [answer for answer in answers if answer.status == 429]
    waits = {answer.headers.get("retry-after") for answer in refused}
    remark = f"{len(refused)} of {len(answers)} refused, Retry-After {'/'.join(sorted(map(str, waits)))}"
    await bench.command("unload", load_name(LOADS[1]))
    return Finding("burst of limit + 20", answers, lambda answer: answer in refused and len(refused) == 20, remark)


async def held(bench: Bench, count: int, load: float) -> tuple[Finding, list[float]]:
    """Requests that come while their model is loaded from nothing; returns our share of each wait, in seconds."""
    model, loaded = load_name(load), bench.folder / load_name(load)
    loaded.unlink(missing_ok=True)
    answers = await asyncio.gather(*(call(bench.urls, chat(model)) for _ in range(count)))
    ready = (await asyncio.to_thread(loaded.stat)).st_mtime
    shares = [answer.ended - ready for answer in answers]
    await bench.command("unload", model)
    share = f"our share p50 {statistics.median(shares):.2f} s, p99 {_p99(shares):.2f} s"
    return Finding(f"{count} held through a load of {load * bench.scale:g} s", answers, remark=share), shares


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[max(0, round(0.99 * len(values)) - 1)]


FAULTS: tuple[Callable[[Bench], Awaitable[Finding]], ...] = (
    servers_killed,
    server_silent,
    burst,
    rolling_restart,
    router_killed,
    api_server_unavailable,
    api_server_silent,
)


def models(folder: Path, scale: float) -> MultiModel:
    """One model that stays loaded in two replicas, and one for each length of a load."""
    scripts = {
        load_name(load): {"load_seconds": load * scale, "loaded": str(folder / load_name(load))} for load in LOADS
    }
    entries = [
        {
            "name": name,
            "alias": name,
            "plain": {"modelId": f"standins/{name}"},
            "env": [{"name": "STANDIN", "value": json.dumps(script)}],
            "scaling": {"minReplicas": REPLICAS if name == "steady" else 0},
        }
        for name, script in {"steady": {}, **scripts}.items()
    ]
    return MultiModel.model_validate({"metadata": {"name": "mm"}, "spec": {"models": entries}})


@asynccontextmanager
async def benches(scale: float) -> AsyncIterator[Bench]:
    """Start everything."""
    with tempfile.TemporaryDirectory() as name, control_plane() as plane:
        folder = Path(name)
        plane.define(CRD)
        add_node(plane)
        async with played_cluster(plane, folder, STANDIN, PlayedCluster) as cluster:
            with faulty_way(plane, folder) as way:
                access = yaml.safe_load(cluster.kubeconfig.read_text())
                access["clusters"][0]["cluster"] = {"server": way.url}
                cluster.kubeconfig.write_text(yaml.safe_dump(access))
                await cluster.apply(models(folder, scale))
                async with running_routers(cluster) as routers:
                    yield Bench(cluster, way, routers, folder, scale)


@asynccontextmanager
async def running_routers(cluster: PlayedCluster) -> AsyncIterator[list[RouterProcess]]:
    environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "PLAYED_PODS": str(cluster.addresses)}
    options = ["--fleet=kubernetes", "--multimodel=mm", f"--namespace={cluster.namespace}", "--log-level=error"]
    options.append(f"--max-waiting-per-model={WAITING_LIMIT}")
    routers = [RouterProcess(ROUTER, options, environment) for _ in range(2)]
    try:
        await asyncio.gather(*(router.start(ready_endpoints=REPLICAS) for router in routers))
        yield routers
    finally:
        for router in routers:
            await router.kill()


async def run(scale: float, only: str) -> dict[str, Any]:
    """Try every fault; returns what was lost in each, and our share of the waits."""
    lost: dict[str, int] = {}
    shares: dict[str, float] = {}
    print(f"{'fault':<36}{'calls':>7}  {'lost':<9}")
    async with benches(scale) as bench:
        for load in LOADS if only in "held" else ():
            for count in HELD:
                finding, waits = await held(bench, count, load)
                shares[finding.fault] = round(_p99(waits), 3)
                lost[finding.fault] = show(finding)
        for fault in [fault for fault in FAULTS if only in fault.__name__]:
            finding = await fault(bench)
            lost[finding.fault] = show(finding)
    return {"lost": lost, "wake_share_p99_seconds": shares}


def show(finding: Finding) -> int:
    """Print what was found, and return how much was lost."""
    lost = finding.lost
    print(f"{finding.fault:<36}{len(finding.answers):>7}  {len(lost) or 'nothing':<9} {finding.remark}", flush=True)
    for answer in lost[:3]:
        print(f"  {answer}")
    return len(lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all lengths of time (default: 1)")
    parser.add_argument("--only", default="", metavar="NAME", help="the faults with this in their function's name")
    given = parser.parse_args()
    began = time.monotonic()
    found = asyncio.run(run(given.scale, given.only))
    print(json.dumps(found | {"seconds": round(time.monotonic() - began)}))
    if any(found["lost"].values()) or any(share > WAKE_BAR for share in found["wake_share_p99_seconds"].values()):
        raise SystemExit("something was lost, or a wake took too long")


if __name__ == "__main__":
    main()
