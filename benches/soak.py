"""Minutes of mixed and ill-behaved traffic against one real model server: does it leak, wedge or lose anything?

Clients chat (whole and streamed), hang up in the middle, send prompts that are too long and schemas that are wrong. At
the end the server must be idle with every KV block back, its memory must not have grown, and each request that was not
hung up on must have had its right answer or its right error. Prints a table and one JSON line; fails if anything was
lost.
"""

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from processes import ROOT, started
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

MODEL = ROOT / "examples" / "models" / "abacus"
CLIENTS = 12
SAMPLE_SECONDS = 2.0
SETTLE_SECONDS = 30.0
ANSWER = "30 + 12 = 42"
QUESTION = {"messages": [{"role": "user", "content": "What is 17 + 25?"}]}
STORY = {"messages": [{"role": "user", "content": "Tell me about yourself."}], "ignore_eos": True, "max_tokens": 400}
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


class Lost(Exception):  # noqa: N818  (it is a finding, not an error of this program)
    """A request that did not get what it should have got."""


@dataclass
class Findings:
    """What was done, what was lost, and how much memory was in use when."""

    done: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)

    def megabytes_by_quarter(self, which: int) -> list[float]:
        """Return the mean memory of the HTTP process (0) or the engine (1) in each quarter of the run."""
        quarter = max(1, len(self.memory) // 4)
        parts = [self.memory[first : first + quarter] for first in range(0, 4 * quarter, quarter)]
        return [round(sum(sizes[which] for sizes in part) / max(1, len(part)) / 1e6, 1) for part in parts]


def is_ready(url: str) -> bool:
    """Tell whether the model server answers requests."""
    return httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK


async def chat(client: httpx.AsyncClient) -> None:
    """Ask and get the right answer."""
    reply = await client.post("/v1/chat/completions", json=QUESTION)
    expect(reply.status_code == httpx.codes.OK and ANSWER in reply.text, reply.text)


async def stream(client: httpx.AsyncClient) -> None:
    """Ask and get the right answer in pieces, up to the end of the stream."""
    text, ended = "", False
    async with client.stream("POST", "/v1/chat/completions", json=QUESTION | {"stream": True}) as reply:
        async for line in reply.aiter_lines():
            ended = ended or line == "data: [DONE]"
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    expect(ended and ANSWER in text, text)


async def hang_up_streaming(client: httpx.AsyncClient) -> None:
    """Leave a long stream after a few chunks."""
    async with client.stream("POST", "/v1/chat/completions", json=STORY | {"stream": True}) as reply:
        lines = reply.aiter_lines()
        for _ in range(random.randrange(1, 20)):
            await anext(lines)


async def hang_up_waiting(client: httpx.AsyncClient) -> None:
    """Leave before a long answer is there."""
    with suppress(httpx.TimeoutException):
        await client.post("/v1/chat/completions", json=STORY, timeout=random.uniform(0.01, 0.5))


async def too_long(client: httpx.AsyncClient) -> None:
    """Send more than the context holds, and be told so."""
    body = {"messages": [{"role": "user", "content": "What is 1 + 1? " * 1000}]}
    await refused(client, body, "context_length_exceeded")


async def bad_schema(client: httpx.AsyncClient) -> None:
    """Send a schema that is none, and be told so."""
    schema = {"name": "bad", "schema": {"type": "no such type"}, "strict": True}
    await refused(client, QUESTION | {"response_format": {"type": "json_schema", "json_schema": schema}}, "")


async def structured(client: httpx.AsyncClient) -> None:
    """Ask for JSON of a schema, and get it or be cut off by the limit of tokens."""
    schema = {"name": "sum", "schema": SCHEMA, "strict": True}
    body = QUESTION | {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 40}
    reply = await client.post("/v1/chat/completions", json=body)
    expect(reply.status_code == httpx.codes.OK, reply.text)
    choice = reply.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        expect(isinstance(json.loads(choice["message"]["content"])["sum"], int), reply.text)


async def refused(client: httpx.AsyncClient, body: dict[str, object], code: str) -> None:
    """Send what is wrong and get a 400 in OpenAI's shape."""
    reply = await client.post("/v1/chat/completions", json=body)
    expect(reply.status_code == httpx.codes.BAD_REQUEST and code in reply.text, f"{reply.status_code} {reply.text}")


def expect(right: bool, found: str) -> None:
    """Raise `Lost` with what was found, if it is not right."""
    if not right:
        raise Lost(found[:300])


DEEDS: tuple[Callable[[httpx.AsyncClient], Awaitable[None]], ...] = (
    *(chat, chat, stream, stream, structured),
    *(hang_up_streaming, hang_up_waiting, too_long, bad_schema),
)


async def customer(url: str, until: float, findings: Findings) -> None:
    """Do one thing after another until the time is over."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while time.monotonic() < until:
            deed = random.choice(DEEDS)
            try:
                await deed(client)
            except (Lost, httpx.HTTPError, json.JSONDecodeError) as error:
                findings.lost.append(f"{deed.__name__}: {error!r}")
            findings.done[deed.__name__] += 1


def private_memory(process: psutil.Process) -> int:
    """Return the bytes of anonymous memory, swapped or not, of a process (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return sum(1024 * int(value) for value in re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", status))


def memory_of_both(server: psutil.Process) -> tuple[int, int]:
    """Return the memory of the HTTP process, and of its child that is the engine."""
    return private_memory(server), max(map(private_memory, server.children(recursive=True)), default=0)


async def used_blocks(client: httpx.AsyncClient) -> tuple[int, int]:
    """Return the KV blocks in use and the requests that run or wait, as the metrics have them."""
    text = (await client.get("/metrics")).text
    values = {
        name: float(value) for name, value in re.findall(r"^(multimodel_\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    }
    requests = values["multimodel_requests_running"] + values["multimodel_requests_waiting"]
    return int(values["multimodel_kv_blocks_used"]), int(requests)


async def soak(url: str, process: psutil.Process, seconds: float) -> tuple[Findings, int, int]:
    """Return the findings, and the blocks and requests still held when all clients have gone."""
    findings, began = Findings(), time.monotonic()
    customers = [asyncio.create_task(customer(url, began + seconds, findings)) for _ in range(CLIENTS)]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("soaking", total=seconds)
        while (passed := time.monotonic() - began) < seconds:
            findings.memory.append(memory_of_both(process))
            progress.update(bar, completed=passed)
            await asyncio.sleep(SAMPLE_SECONDS)
    await asyncio.gather(*customers)
    async with httpx.AsyncClient(base_url=url) as client:
        return findings, *await settled(client)


async def settled(client: httpx.AsyncClient) -> tuple[int, int]:
    """Return the KV blocks and requests still held once there are none, or the time for that is over."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        held = await used_blocks(client)
        if held == (0, 0) or time.monotonic() >= deadline:
            return held
        await asyncio.sleep(0.2)


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: %(default)s)")
    chosen = parser.parse_args()
    random.seed(0)
    arguments = (f"--model={MODEL}", "--pa-context-len=8192")
    with started("multimodel_server", *arguments, is_ready=is_ready) as (url, process):
        findings, blocks, requests = asyncio.run(soak(url, process, chosen.seconds))
    table = Table("request", "sent", title=f"{chosen.seconds:.0f} s, {CLIENTS} clients")
    for name, count in sorted(findings.done.items()):
        table.add_row(name.replace("_", " "), str(count))
    Console().print(table)
    for loss in findings.lost[:10]:
        print("lost:", loss)
    result = {
        "bench": "soak",
        "requests": findings.done.total(),
        "lost": len(findings.lost),
        "blocks_held": blocks,
        "requests_held": requests,
        "http_mb_by_quarter": findings.megabytes_by_quarter(0),
        "engine_mb_by_quarter": findings.megabytes_by_quarter(1),
    }
    print(json.dumps(result))
    if findings.lost or blocks or requests:
        raise SystemExit("something was lost or is still held")


if __name__ == "__main__":
    main()
