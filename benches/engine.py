"""The engine beside transformers on the same weights: tokens a second, time to first token, time between tokens.

Greedy, end of text ignored, float32 on the CPU; every peer in a process of its own, one after another. The engine is
driven over its pipe as the HTTP process does; transformers gets all prompts at once, as one batch for `generate` and as
a queue for its continuous batching. Prints a table, the bars with what was measured, and one JSON line.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, model_folder
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StoppingCriteria

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine import loop
from multimodel_server.engine.messages import (
    FromEngine,
    Generate,
    LoadFailed,
    Ready,
    Sampling,
    Step,
    Stop,
    decode_from_engine,
    encode,
)

STREAMS = (1, 8, 32)
PROMPT_TOKENS = 32
SHARED_PREFIX = 1024
LONG_PROMPT = 4096
FIRST_TOKEN_ID = 1000
Prompts = Sequence[Sequence[int]]
console = Console(width=120)


@dataclass(frozen=True)
class Run:
    """When each token of each request came, in seconds after all were asked for."""

    arrivals: list[list[float]]

    @property
    def tokens_per_second(self) -> float:
        """All tokens over all the time."""
        return sum(map(len, self.arrivals)) / max(times[-1] for times in self.arrivals)

    @property
    def first(self) -> list[float]:
        """Seconds to each request's first token."""
        return [times[0] for times in self.arrivals]

    @property
    def between(self) -> list[float]:
        """Seconds between tokens of one request."""
        return [later - earlier for times in self.arrivals for earlier, later in itertools.pairwise(times)]


class Engine:
    """The engine process, driven over its pipe."""

    def __init__(self, model: Path, **settings: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        config = EngineConfig(model, dtype="f32", kv_size=KvSize(context_len=16384), **settings)  # type: ignore[arg-type]
        self._process = context.Process(target=loop.main, args=(config, theirs), daemon=True)
        self._process.start()
        while not isinstance(message := self.receive(), Ready):
            if isinstance(message, LoadFailed):
                raise SystemExit(f"{message.reason}: {message.message}")
        self.run([random_prompt(random.Random(-1), 8)], 2)

    def receive(self) -> FromEngine:
        """Return the engine's next message."""
        return decode_from_engine(self._pipe.recv_bytes())

    def submit(self, name: str, prompt: Sequence[int], new_tokens: int) -> None:
        """Ask for a continuation."""
        self._pipe.send_bytes(encode(Generate(name, list(prompt), Sampling(max_tokens=new_tokens))))

    def run(
        self,
        prompts: Prompts,
        new_tokens: int,
        *,
        then: Callable[[int], tuple[Sequence[int], int] | None] | None = None,
    ) -> Run:
        """Return when the tokens of all prompts came; `then` may submit one more prompt after so many steps."""
        began = time.perf_counter()
        arrivals: dict[str, list[float]] = {str(number): [] for number in range(len(prompts))}
        for name, prompt in zip(arrivals, prompts, strict=True):
            self.submit(name, prompt, new_tokens)
        unfinished, steps = len(prompts), 0
        while unfinished:
            message = self.receive()
            if not isinstance(message, Step):
                continue
            now, steps = time.perf_counter() - began, steps + 1
            for tokens in message.tokens:
                arrivals[tokens.request_id] += [now] * len(tokens.token_ids)
                unfinished -= tokens.finish_reason is not None
            more = then(steps) if then is not None else None
            if more is not None:
                name = str(len(arrivals))
                arrivals[name] = []
                unfinished += 1
                self.submit(name, *more)
        return Run(list(arrivals.values()))

    def stop(self) -> None:
        """End the process."""
        self._pipe.send_bytes(encode(Stop()))
        self._process.join()


def ours(model: Path, loads: Sequence[Prompts], new_tokens: int) -> list[Run]:
    """Return the engine's runs."""
    engine = Engine(model)
    runs = [engine.run(prompts, new_tokens) for prompts in loads]
    engine.stop()
    return runs


class NotingTimes(StoppingCriteria):
    """Never stops anything, and notes when each step ended: `generate` streams single sequences only."""

    def __init__(self) -> None:
        self.began, self.times = time.perf_counter(), list[float]()

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Note the time; return that no sequence is done."""
        self.times.append(time.perf_counter() - self.began)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@torch.inference_mode()
def transformers_generate(model: Path, loads: Sequence[Prompts], new_tokens: int) -> list[Run]:
    """Return the runs of `generate`, each load one batch."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded.generation_config.eos_token_id = None
    settings = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    runs = []
    for prompts in (loads[0], *loads):  # the first is a warm-up
        ids, times = torch.tensor(prompts), NotingTimes()
        loaded.generate(ids, attention_mask=torch.ones_like(ids), stopping_criteria=[times], **settings)
        runs.append(Run([times.times] * len(prompts)))
    return runs[1:]


def transformers_continuous(model: Path, loads: Sequence[Prompts], new_tokens: int) -> list[Run]:
    """Return the runs of transformers' continuous batching."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="paged|sdpa")
    generation = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    settings = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=1024)
    runs = []
    for prompts in (loads[0], *loads):
        began = time.perf_counter()
        outputs = loaded.generate_batch(
            [list(prompt) for prompt in prompts], generation, settings, record_timestamps=True
        )
        runs.append(Run([[stamp - began for stamp in output.timestamps] for output in outputs.values()]))
    return runs[1:]


PEERS = {
    "engine": ours,
    "transformers generate": transformers_generate,
    "transformers continuous batching": transformers_continuous,
}


def shared_prefix(model: Path) -> float:
    """Return how many times sooner the first token comes when a 1k-token prefix is in the cache."""
    engine, rng = Engine(model), random.Random(1)
    ratios = []
    for _ in range(3):
        prefix = random_prompt(rng, SHARED_PREFIX)
        cold, warm = (engine.run([[*prefix, *random_prompt(rng, 16)]], 1).first[0] for _ in range(2))
        ratios.append(cold / warm)
    engine.stop()
    return statistics.median(ratios)


def admission(model: Path, streams: int = 8) -> float:
    """Return by how much the 99th percentile of the time between tokens grows while a 4k prompt is admitted."""
    engine, rng = Engine(model), random.Random(2)
    prompts = [random_prompt(rng, PROMPT_TOKENS) for _ in range(streams)]
    alone = engine.run(prompts, 48)
    prompts = [random_prompt(rng, PROMPT_TOKENS) for _ in range(streams)]
    long = random_prompt(rng, LONG_PROMPT)
    disturbed = engine.run(prompts, 160, then=lambda step: (long, 1) if step == 16 else None)
    engine.stop()
    return percentile(Run(disturbed.arrivals[:streams]).between, 99) / percentile(alone.between, 99)


def random_prompt(rng: random.Random, length: int) -> list[int]:
    """Return token ids that no other prompt begins with."""
    return [rng.randrange(FIRST_TOKEN_ID, 10 * FIRST_TOKEN_ID) for _ in range(length)]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many percent do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def in_child(work: Callable[..., object], *arguments: object) -> object:
    """Return what `work` returns in a process of its own, whose memory is then free again."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def throughput_table(runs: dict[str, list[Run]]) -> Table:
    """Return every peer's figures for every number of streams."""
    table = Table("streams", "who", "tok/s", "TTFT p50", "p99", "between p50", "p99 (ms)", title="float32, CPU")
    for row, streams in enumerate(STREAMS):
        for peer, measured in runs.items():
            run = measured[row]
            times = [percentile(run.first, 50), percentile(run.first, 99)]
            times += [percentile(run.between, 50), percentile(run.between, 99)]
            table.add_row(str(streams), peer, f"{run.tokens_per_second:.1f}", *(f"{1000 * t:.0f}" for t in times))
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=SHAPES, default="qwen3-0.6b", help="size of the model (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=24, help="tokens generated per request (default: %(default)s)")
    parser.add_argument("--only", nargs="*", choices=("throughput", "prefix", "admission"), help="measure only this")
    chosen = parser.parse_args()
    wanted = chosen.only or ("throughput", "prefix", "admission")
    model = model_folder(chosen.shape)
    bars: dict[str, tuple[float, str]] = {}
    if "throughput" in wanted:
        rng = random.Random(0)
        loads = [[random_prompt(rng, PROMPT_TOKENS) for _ in range(streams)] for streams in STREAMS]
        runs = {name: in_child(peer, model, loads, chosen.tokens) for name, peer in PEERS.items()}
        console.print(throughput_table(runs))  # type: ignore[arg-type]
        speed = {name: [run.tokens_per_second for run in measured] for name, measured in runs.items()}  # type: ignore[attr-defined]
        engine, generate, continuous = speed.values()
        bars["1 stream ÷ the better of transformers' two"] = (engine[0] / max(generate[0], continuous[0]), ">= 1.3")
        bars["32 streams ÷ 1 stream"] = (engine[-1] / engine[0], ">= 2")
        bars["32 streams ÷ continuous batching"] = (engine[-1] / continuous[-1], ">= 1.5")
    if "prefix" in wanted:
        bars["first token without ÷ with a cached 1k prefix"] = (in_child(shared_prefix, model), ">= 5")  # type: ignore[assignment]
    if "admission" in wanted:
        bars["time between tokens (p99) during ÷ without a 4k prompt"] = (in_child(admission, model), "<= 3")  # type: ignore[assignment]
    table = Table("measure", "value", "bar")
    for name, (value, bar) in bars.items():
        table.add_row(name, f"{value:.2f}", bar)
    console.print(table)
    print(
        json.dumps(
            {"bench": "engine", "shape": chosen.shape, **{name: round(value, 2) for name, (value, _) in bars.items()}}
        )
    )


if __name__ == "__main__":
    main()
