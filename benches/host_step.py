"""What a decoding step costs the host: planning it, sending it and reading what it brought.

The model computes nothing here. On a device all this happens while the step before runs, and costs nothing as long as
it takes less time than that. Prints the CPU time of a step by the number of sequences, or where it goes.
"""

import argparse
import cProfile
import pstats
import statistics
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table

from multimodel_server import kernels
from multimodel_server.engine.device_runner import DeviceRunner
from multimodel_server.engine.messages import Generate, Sampling
from multimodel_server.engine.pipeline import Pipeline
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Limits
from multimodel_server.engine.schedulers import scheduler_for

CONTEXT = 1024
STEPS = 80
BATCHES = (1, 8, 32, 128, 256)
LIMITS = Limits(max_seqs=256, max_batched_tokens=4096, max_request_tokens=2048, block_size=16, vocab_size=32)


@dataclass
class Nothing:
    """A decoder that has nothing to compute."""

    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(max_position_embeddings=2048))
    layers: tuple[()] = ()

    def __call__(self, token_ids: torch.Tensor, *_: object) -> torch.Tensor:
        """Return hidden states of no meaning."""
        return torch.zeros(len(token_ids), 1)

    def narrow_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what nobody looks at."""
        return hidden


def decoding(batch: int) -> Pipeline:
    """Return an engine's steps where so many sequences decode, one after another from now on."""
    scheduler = scheduler_for(LIMITS, batch * (CONTEXT + 3 * STEPS) // LIMITS.block_size + 129)
    runner = DeviceRunner(Nothing(), torch.zeros(1, 2, 2, 16, 1, 8), LIMITS.max_seqs, LIMITS.max_batched_tokens)
    pipeline = Pipeline(scheduler, runner)
    for number in range(batch):
        sampling = Sampling(max_tokens=3 * STEPS, temperature=0.7, seed=number)
        scheduler.add(Request.of(Generate(f"r{number}", [number % 32] * CONTEXT, sampling)))
    while len(chunks := pipeline.launch()) < batch or not all(chunk.decodes for chunk in chunks):
        pipeline.land(all_launched=False)
    pipeline.land(all_launched=False)
    return pipeline


def step(pipeline: Pipeline) -> float:
    began = time.thread_time()
    pipeline.launch()
    pipeline.land(all_launched=False)
    return time.thread_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", type=int, metavar="BATCH", help="print where the time of such steps goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kernels.sample = lambda logits, _: torch.ones(len(logits), dtype=torch.int64)
    if arguments.profile:
        pipeline, profile = decoding(arguments.profile), cProfile.Profile()
        for _ in range(STEPS):
            profile.runcall(step, pipeline)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        return
    table = Table("sequences", "ms a step", "µs a sequence", title=f"The host's part of a step, {CONTEXT} tokens each")
    for batch in BATCHES:
        pipeline = decoding(batch)
        seconds = statistics.median(step(pipeline) for _ in range(STEPS))
        table.add_row(str(batch), f"{seconds * 1e3:.2f}", f"{seconds * 1e6 / batch:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
