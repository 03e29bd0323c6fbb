"""What the router adds to a stream: time to the first chunk and to the end, direct and through the router, same run.

Both ways end at the same model server process, started by the router itself; requests alternate between the two ways so
that noise meets both. Prints a table and, last, one JSON line.
"""

import argparse
import asyncio
import json
import os
import statistics
import time

import httpx
import psutil
from processes import ROOT, started
from rich.console import Console
from rich.table import Table

STREAMS = (1, 8, 32)
BODY = {
    "model": "math",
    "stream": True,
    "max_tokens": 48,
    "messages": [{"role": "user", "content": "Tell me about yourself."}],
}


def is_loaded(url: str) -> bool:
    """Tell whether `math` answers."""
    return bool(httpx.get(f"{url}/v1/models/math").json().get("status") == "loaded")


def server_url() -> str:
    """Return the URL of the model server that the router has started for `math`."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        arguments = process.cmdline()
        if "--alias=math" in arguments:
            port = next(a.partition("=")[2] for a in arguments if a.startswith("--port="))
            return f"http://127.0.0.1:{port}/v1"
    raise SystemExit("found no model server of 'math' among the router's children")


async def stream(client: httpx.AsyncClient, url: str) -> tuple[float, float]:
    """Return the seconds to a stream's first chunk and to its end."""
    began = time.perf_counter()
    first = 0.0
    async with client.stream("POST", f"{url}/chat/completions", json=BODY) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_raw():
            first = first or time.perf_counter() - began
    return first, time.perf_counter() - began


async def measure(urls: dict[str, str], streams: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds to first chunk and end for each way, with `streams` at once."""
    seen: dict[str, list[tuple[float, float]]] = {way: [] for way in urls}
    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)
    async with httpx.AsyncClient(limits=limits, timeout=120, trust_env=False) as client:
        for number in range(rounds + 1):
            for way, url in urls.items():
                results = await asyncio.gather(*(stream(client, url) for _ in range(streams)))
                seen[way] += results if number else []  # the first round warms up
    return {
        way: (statistics.median(r[0] for r in results), statistics.median(r[1] for r in results))
        for way, results in seen.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds for each number of streams")
    chosen = parser.parse_args()
    table = Table("streams", "way", "first chunk ms", "end ms", title="math, streamed: medians")
    result = {}
    manifest = ROOT / "examples" / "quickstart.yaml"
    arguments = ("--fleet=processes", f"--manifest={manifest}")
    with started("multimodel_router", *arguments, is_ready=is_loaded) as (router, _):
        url = f"{router}/v1"
        urls = {"direct": server_url(), "router": url}
        for streams in STREAMS:
            medians = asyncio.run(measure(urls, streams, chosen.rounds))
            for way, (first, end) in medians.items():
                table.add_row(str(streams), way, f"{first * 1000:.1f}", f"{end * 1000:.1f}")
            added = [through - direct for through, direct in zip(medians["router"], medians["direct"], strict=True)]
            ratio = medians["router"][1] / medians["direct"][1]
            result[streams] = {"added_first_chunk_ms": round(added[0] * 1000, 2), "end_ratio": round(ratio, 3)}
    Console().print(table)
    print(json.dumps({"bench": "router_overhead", "streams": result}))


if __name__ == "__main__":
    main()
