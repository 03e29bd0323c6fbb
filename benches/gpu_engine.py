"""The engine's own pace, without HTTP: decoding at a batch and a context, and a long prompt."""

import random
import statistics
from dataclasses import dataclass

import torch
from gpu_measures import COPY, MATMUL, Bar, Measure, Setting, Tell
from gpu_wire import Load, Plan, Seen, follow, random_prompts
from shapes import SHAPES, empty_model, model_folder

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine.loading import LoadedModel, load

ELEMENT_BYTES = 2
SETTLING = 4
"""Steps at the start of a load that are not counted."""
WATCHED = range(8, 24)


@dataclass(frozen=True)
class Costs:
    """What a model's step reads and computes at least."""

    step_weights: int
    """Weights that every step multiplies by: all but an embedding that is no head too."""
    head: int
    kv_bytes: int
    """Of one token."""
    score_flops: int
    """For one pair of tokens, in all layers."""

    @classmethod
    def of(cls, shape: str) -> "Costs":
        """Return the costs of a shape in bfloat16."""
        _, config = SHAPES[shape]
        weights = sum(parameter.numel() for parameter in empty_model(shape).parameters())
        head = config.vocab_size * config.hidden_size
        return cls(
            step_weights=weights if config.tie_word_embeddings else weights - head,
            head=head,
            kv_bytes=2 * config.num_hidden_layers * config.num_key_value_heads * _head_dim(shape) * ELEMENT_BYTES,
            score_flops=4 * config.num_hidden_layers * config.num_attention_heads * _head_dim(shape),
        )

    def decode_bytes(self, batch: int, context: float) -> float:
        """Return what a decoding step reads: weights and keys and values."""
        return self.step_weights * ELEMENT_BYTES + batch * context * self.kv_bytes

    def prefill_flops(self, tokens: int) -> float:
        """Return what computing a prompt takes; the head sees its last token alone."""
        return 2 * (self.step_weights - self.head) * tokens + 2 * self.head + self.score_flops * tokens**2 / 2


def _head_dim(shape: str) -> int:
    config = SHAPES[shape][1]
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


@dataclass(frozen=True)
class Case:
    """Sequences of one length that decode together."""

    batch: int
    context: int
    steps: int
    bar: float | None = None


class Bench:
    """A shape's model, loaded as the model server loads it, with room for the largest case."""

    def __init__(self, setting: Setting, shape: str, cases: list[Case]) -> None:
        self.setting, self.name, self.shape = setting, shape, setting.shape(shape)
        self.cases = [_small(case) for case in cases] if setting.tiny else cases
        self.costs = Costs.of(self.shape)
        self.rng = random.Random(self.shape)
        room = max(case.batch * (case.context + 2 * case.steps) for case in self.cases)
        self.model = self._load(max(room, 16384), max(case.batch for case in self.cases))

    def _load(self, tokens: int, max_seqs: int) -> LoadedModel:
        config = EngineConfig(model_folder(self.shape), max_seqs=max_seqs, kv_size=KvSize(context_len=tokens))
        return load(config, lambda *_: None)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Return prompts that nobody saw before."""
        return random_prompts(self.rng, count, length, SHAPES[self.shape][1].vocab_size)

    def decode(self, case: Case, tell: Tell) -> None:
        """Measure the steps of a case."""

        def plan() -> Plan:
            prompts = self.prompts(case.batch, case.context)
            yield Load(prompts, 1)
            # The prompts are in the prefix cache now: what follows begins with a step in which all decode.
            seen = yield Load([[*prompt, 1] for prompt in prompts], case.steps)
            watched = yield Load([[*prompt, 2] for prompt in prompts], WATCHED.stop + SETTLING, WATCHED)
            tell(self._decoded(case, seen, watched))

        follow(self.model, plan(), self.setting.device)

    def _decoded(self, case: Case, seen: Seen, watched: Seen) -> Measure:
        times = [time for time, gained in zip(seen.times, seen.gained, strict=True) if gained == case.batch]
        times = times[SETTLING:]
        step = (times[-1] - times[0]) / (len(times) - 1)
        read = self.costs.decode_bytes(case.batch, case.context + case.steps / 2)
        share = read / (self.setting.floor(COPY) * 1e12) / step
        notes = [f"{case.batch / step:,.0f} tok/s", f"{step * 1e3:.3f} ms a step", f"reads {read / 1e9:.2f} GB"]
        if watched.profile is not None:
            notes.append(f"device idle {1 - watched.profile.busy_us / watched.profile.step_us:.0%}")
        bar = None if case.bar is None else Bar("≥", case.bar)
        name = f"decode, {self.name}, batch {case.batch}, {case.context} tokens"
        return Measure(name, share, "%", bar, tuple(notes), watched.profile)

    def prefill(self, tokens: int, bar: float, tell: Tell) -> None:
        """Measure a prompt that fills one step."""
        length = 64 if self.setting.tiny else tokens
        repeats = 2 if self.setting.quick else 5

        def plan() -> Plan:
            yield Load(self.prompts(1, length), 1)
            took = []
            for _ in range(repeats):
                seen = yield Load(self.prompts(1, length), 1)
                took.append(seen.times[-1])
            watched = yield Load(self.prompts(1, length), 1, range(1))
            step, flops = statistics.median(took), self.costs.prefill_flops(length)
            share = flops / (self.setting.floor(MATMUL) * 1e12) / step
            notes = (f"{length / step:,.0f} tok/s", f"{step * 1e3:.1f} ms", f"{flops / step / 1e12:.0f} TFLOP/s")
            name = f"prefill, {self.name}, {length} tokens"
            tell(Measure(name, share, "%", Bar("≥", bar), notes, watched.profile))

        follow(self.model, plan(), self.setting.device)


def _small(case: Case) -> Case:
    return Case(min(case.batch, 4), 32, 32, case.bar)


def decode_small(setting: Setting, tell: Tell) -> None:
    """Qwen3-0.6B: one sequence, and as many as the HTTP row has at once."""
    cases = [Case(1, 1024, 512, 0.45), Case(256, 640, 96)]
    bench = Bench(setting, "qwen3-0.6b", cases[:1] if setting.quick else cases)
    for case in bench.cases:
        bench.decode(case, tell)


def decode_middle(setting: Setting, tell: Tell) -> None:
    """Qwen3-4B: one sequence."""
    bench = Bench(setting, "qwen3-4b", [Case(1, 1024, 256, 0.7)])
    bench.decode(bench.cases[0], tell)


def large(setting: Setting, tell: Tell) -> None:
    """Qwen3-8B: one sequence, 32 and 128, and a long prompt."""
    bench = Bench(setting, "qwen3-8b", [Case(1, 1024, 192, 0.78), Case(32, 1024, 128, 0.7), Case(128, 1024, 96, 0.6)])
    for case in bench.cases:
        bench.decode(case, tell)
        if setting.device == "cuda":
            torch.cuda.synchronize()
    bench.prefill(4096, 0.55, tell)
