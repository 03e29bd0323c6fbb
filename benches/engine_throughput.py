"""Output tokens a second of the engine process against transformers' generate, same weights, same prompts, same run.

Greedy, end-of-text ignored, float32, on the CPU. Decoding many sequences at once is what a server is for: transformers
gets the same sequences as one left-padded batch, its best case. Prints a table and, last, one JSON line.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from multimodel_server.config import EngineConfig
from multimodel_server.engine import loop
from multimodel_server.engine.messages import (
    Generate,
    LoadFailed,
    Ready,
    Sampling,
    Stop,
    Tokens,
    decode_from_engine,
    encode,
)

MODELS = Path(__file__).parent.parent / "examples" / "models"
BATCHES = (1, 8, 32)


def prompts(model: Path, count: int) -> list[list[int]]:
    """Return `count` chat prompts of different lengths as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [f"What is {n} + {n * 7 % 90}?" + " Thanks." * (n % 5) for n in range(10, 10 + count)]
    chats = [[{"role": "user", "content": question}] for question in asked]
    return [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]


class OurEngine:
    """The engine process, driven over its pipe as the HTTP process does."""

    def __init__(self, model: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=loop.main, args=(EngineConfig(model, dtype="f32"), theirs), daemon=True)
        self._process.start()
        while not isinstance(message := decode_from_engine(self._pipe.recv_bytes()), Ready):
            if isinstance(message, LoadFailed):
                raise SystemExit(f"{message.reason}: {message.message}")

    def seconds(self, inputs: list[list[int]], new_tokens: int) -> float:
        """Return how long it takes to continue all inputs by `new_tokens` each."""
        began = time.perf_counter()
        for number, ids in enumerate(inputs):
            self._pipe.send_bytes(encode(Generate(f"{began}-{number}", ids, Sampling(max_tokens=new_tokens))))
        unfinished = len(inputs)
        while unfinished:
            message = decode_from_engine(self._pipe.recv_bytes())
            unfinished -= isinstance(message, Tokens) and message.finish_reason is not None
        return time.perf_counter() - began

    def stop(self) -> None:
        """End the process."""
        self._pipe.send_bytes(encode(Stop()))
        self._process.join()


class Transformers:
    """The peer: `generate` over one left-padded batch."""

    def __init__(self, model: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def seconds(self, inputs: list[list[int]], new_tokens: int) -> float:
        """Return how long it takes to continue all inputs by `new_tokens` each."""
        longest = max(map(len, inputs))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in inputs])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in inputs])
        began = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=mask,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODELS / "abacus", help="folder of a model")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated per sequence")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts")
    chosen = parser.parse_args()
    ours, peer = OurEngine(chosen.model), Transformers(chosen.model)
    table = Table(
        "sequences", "engine tok/s", "transformers tok/s", "ratio", title=f"{chosen.model.name}, float32, CPU"
    )
    result = {}
    for batch in BATCHES:
        inputs = prompts(chosen.model, batch)
        total = batch * chosen.tokens
        fastest = [min(each.seconds(inputs, chosen.tokens) for _ in range(chosen.repeats)) for each in (ours, peer)]
        engine, reference = (total / seconds for seconds in fastest)
        table.add_row(str(batch), f"{engine:.0f}", f"{reference:.0f}", f"{engine / reference:.2f}")
        result[batch] = round(engine / reference, 2)
    ours.stop()
    Console().print(table)
    print(json.dumps({"bench": "engine_throughput", "model": chosen.model.name, "ratio_to_transformers": result}))


if __name__ == "__main__":
    main()
