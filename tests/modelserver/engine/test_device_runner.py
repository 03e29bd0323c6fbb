"""The runner of devices, on the CPU: the same step over memory that never moves, ids that the host has not seen."""

import random

import pytest
import torch

from multimodel_server import kernels
from multimodel_server.engine.compilations import watch_compilations
from multimodel_server.engine.device_runner import DeviceRunner
from multimodel_server.engine.device_steps import StepSizes
from multimodel_server.engine.graphs import graph_sizes
from multimodel_server.engine.messages import Embed, Embedded, Generate, RequestFailed, Sampling
from multimodel_server.engine.pipeline import Pipeline
from multimodel_server.engine.request import Request
from multimodel_server.engine.warm_up import SAMPLINGS, warm_up_steps
from multimodel_server.kernels import SamplingRows


@pytest.fixture(scope="module")
def engine(stepped_engine, tiny_model):
    """Return an engine over a variant's model, its runner that of devices, with settings given by name."""

    def make(variant="qwen3_tied_wide_heads", **settings):
        engine = stepped_engine(tiny_model(variant).path, **settings)
        limits = engine.scheduler.limits
        cache = torch.stack([torch.stack(list(layer)) for layer in engine.runner.layers])
        engine.runner = DeviceRunner(engine.runner.decoder, cache, limits.max_seqs, limits.max_batched_tokens)
        return engine

    return make


def run(engine, messages):
    """Return what is told of each request, with one step launched ahead throughout."""
    pipeline = Pipeline(engine.scheduler, engine.runner)
    told = {message.request_id: [] for message in messages}
    for message in messages:
        engine.scheduler.add(Request.of(message))
    while engine.scheduler.has_work or pipeline.busy:
        chunks = pipeline.launch()
        for landing in pipeline.land(all_launched=not chunks):
            for message in landing.told:
                told[message.request_id].append(message)
        assert engine.scheduler.problems() == []
    assert engine.scheduler.blocks.used == 0
    return told


def tokens(told):
    return {name: [token for message in said for token in message.token_ids] for name, said in told.items()}


@pytest.mark.parametrize("settings", [{}, {"max_seqs": 3}, {"max_batched_tokens": 24}, {"paged_attention": "off"}])
def test_greedy_answers_are_those_of_transformers(engine, tiny_model, prompts, generate, settings):
    messages = [generate(prompt, 5 + 7 * index % 12) for index, prompt in enumerate(prompts)]
    expected = {
        message.request_id: tiny_model("qwen3_tied_wide_heads").greedy(message.prompt_ids, message.sampling.max_tokens)
        for message in messages
    }
    assert tokens(run(engine(**settings), messages)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_and_goes_the_others_get_their_answers(engine, tiny_model, stepped_engine, generate, seed):
    """Texts that begin alike, in a cache so small that some are put back; some are cancelled with steps in flight."""
    chance = random.Random(seed)
    beginnings = [[chance.randrange(200) for _ in range(40)] for _ in range(2)]
    messages = [
        generate([*chance.choice(beginnings)[: chance.randint(1, 40)], number], chance.randint(1, 30))
        for number in range(14)
    ]
    expected = stepped_engine(tiny_model("qwen3_tied_wide_heads").path).answer([(0, message) for message in messages])
    small = engine(max_seqs=5, max_batched_tokens=20, context_len=128)
    pipeline, waiting, said, gone = Pipeline(small.scheduler, small.runner), list(messages), {}, set()
    while waiting or small.scheduler.has_work or pipeline.busy:
        if waiting and chance.random() < 0.4:
            small.scheduler.add(Request.of(waiting.pop(0)))
        if small.scheduler.running and chance.random() < 0.03:
            name = chance.choice(small.scheduler.running).request_id
            gone.add(name)
            small.scheduler.cancel(name)
        chunks = pipeline.launch()
        for landing in pipeline.land(all_launched=not chunks):
            for message in landing.told:
                said.setdefault(message.request_id, []).extend(message.token_ids)
        assert small.scheduler.problems() == []
    assert small.scheduler.blocks.used == 0
    for name, answer in expected.items():
        tokens_said = said.get(name, [])
        assert tokens_said == (answer[: len(tokens_said)] if name in gone else answer)


def test_every_architecture_decodes_as_it_does_step_by_step(
    any_architecture, stepped_engine, engine, request, prompts, generate
):
    messages = [generate(prompt, 6) for prompt in prompts[:5]]
    expected = stepped_engine(any_architecture.path).answer([(0, message) for message in messages])
    variant = request.node.callspec.params["any_architecture"]
    assert tokens(run(engine(variant), messages)) == expected


def test_batches_are_padded_to_few_sizes():
    assert graph_sizes(1) == [1]
    assert graph_sizes(3) == [1, 2, 3]
    assert graph_sizes(32) == [1, 2, 4, 8, 16, 32]
    assert graph_sizes(40) == [1, 2, 4, 8, 16, 32, 40]


@pytest.mark.parametrize("sampling", SAMPLINGS[1:6], ids=["plain", "top_k", "top_p", "min_p", "all"])
def test_a_draw_depends_on_nothing_but_its_own_request(engine, prompts, generate, sampling):
    """Alone, or in a batch with others, cut in pieces and preempted."""
    settings = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    messages = [generate(prompt, 20, **settings, seed=2**64 - 1 - index) for index, prompt in enumerate(prompts)]
    together = tokens(run(engine(), messages))
    crowded = engine(max_batched_tokens=24, max_seqs=6, context_len=128)
    assert tokens(run(crowded, messages)) == together
    for message in messages[:2]:
        assert tokens(run(engine(), [message])) == {message.request_id: together[message.request_id]}
    assert crowded.scheduler.preemptions > 0


def test_draws_are_by_the_models_logits(engine, tiny_model, prompts, generate):
    message = generate(prompts[3], 8, temperature=1.3, top_k=20, seed=77)
    (answer,) = tokens(run(engine(), [message])).values()
    text = prompts[3] + answer
    logits = tiny_model("qwen3_tied_wide_heads").logits(text)[len(prompts[3]) - 1 : -1]
    rows = SamplingRows(
        *(
            torch.full((8,), value, dtype=torch.float32 if index != 1 else torch.int32)
            for index, value in enumerate((1.3, 20, 1.0, 0.0))
        ),
        seed=torch.full((8,), 77),
        position=torch.arange(8),
    )
    assert kernels.sample(logits, rows).tolist() == answer


HOST_OPTIONS = [
    {"repetition_penalty": 1.3},
    {"logit_bias": {3: 5.0}},
    {"logprobs": 2},
    {"presence_penalty": 1.0, "temperature": 0.8, "seed": 3},
    {},
    {"frequency_penalty": 0.5, "logprobs": 0},
]


def test_requests_for_the_host_are_served_as_on_the_cpu(stepped_engine, engine, tiny_model, prompts, generate):
    """In batches with requests that the device serves, and with embeddings and prompts that are scored."""
    messages = [generate(prompt, 8, **options) for prompt, options in zip(prompts, HOST_OPTIONS, strict=False)]
    messages.append(Generate("scored", prompts[5], Sampling(max_tokens=5), prompt_logprobs=2))
    messages.append(Generate("scored too", prompts[0], Sampling(max_tokens=5), prompt_logprobs=0))
    messages += [Embed("long", prompts[6]), Embed("short", prompts[0])]
    told = run(engine(), messages)
    synchronous = stepped_engine(tiny_model("qwen3_tied_wide_heads").path)
    for message in messages:
        synchronous.scheduler.add(Request.of(message))
    expected = {message.request_id: [] for message in messages}
    while synchronous.scheduler.has_work:
        for message in synchronous.step():
            expected[message.request_id].append(message)
    for name, said in told.items():
        assert len(said) == len(expected[name])
        for ours, theirs in zip(said, expected[name], strict=True):
            if isinstance(ours, Embedded):
                assert ours.vector == pytest.approx(theirs.vector, abs=1e-5)
                continue
            assert (ours.token_ids, ours.finish_reason) == (theirs.token_ids, theirs.finish_reason)
            assert flattened(ours.logprobs) == pytest.approx(flattened(theirs.logprobs), abs=1e-4)
            assert flattened(ours.prompt_logprobs) == pytest.approx(flattened(theirs.prompt_logprobs), abs=1e-4)


def flattened(entries):
    return [
        number for entry in entries or () for pair in [(entry.token_id, entry.logprob), *entry.top] for number in pair
    ]


def test_logits_that_are_not_finite_end_their_own_request(engine, prompts, generate):
    broken = engine()
    embedding = broken.runner.decoder.embed_tokens
    embedding.weight.data[7] = torch.nan  # no other text has it, and no logit of others that are greedy wins by it
    broken.runner.decoder.lm_head = torch.nn.Linear(1, 1)
    broken.runner.decoder.lm_head.weight = torch.nn.Parameter(
        embedding.weight.clone().nan_to_num(0.0), requires_grad=False
    )
    bad, good = generate([7, 1, 2], 5), generate(prompts[2], 5)
    told = run(broken, [bad, good])
    assert told[bad.request_id] == [RequestFailed(bad.request_id, "the model's logits are not finite")]
    assert len(tokens({"good": told[good.request_id]})["good"]) == 5


def test_a_token_that_could_not_be_chosen_harms_nobody_in_the_step_behind_it(engine, prompts, generate):
    """The step behind a decoding step whose logits are not finite has been launched already."""
    faulty = engine()
    decoder = faulty.runner.decoder
    compute, steps = decoder.narrow_logits, []

    def logits(hidden):
        steps.append(len(hidden))
        found = compute(hidden)
        if len(steps) == 3:
            found[0] = torch.nan
        return found

    decoder.narrow_logits = logits
    first, second = generate(prompts[2], 8), generate(prompts[3], 8)
    told = run(faulty, [first, second])
    assert isinstance(told[first.request_id][-1], RequestFailed)
    decoder.narrow_logits = compute
    assert tokens({"": told[second.request_id]})[""] == tokens(run(engine(), [second]))[second.request_id]


def test_warming_up_leaves_the_cache_as_it_was(engine, tiny_model, prompts, generate):
    warm = engine(max_seqs=6, max_batched_tokens=48)
    warm.runner.capture()
    assert all(not cache[1:].any() for layer in warm.runner.layers for cache in layer)
    message = generate(prompts[5], 5)
    expected = tiny_model("qwen3_tied_wide_heads").greedy(prompts[5], 5)
    assert tokens(run(warm, [message])) == {message.request_id: expected}


def test_kernels_that_are_compiled_late_are_told_and_whoever_else_listens_is_too(monkeypatch):
    knobs = pytest.importorskip("triton").knobs
    others, told = [], []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **compiled: others.append(compiled["repr"]))
    watch_compilations(told.append)
    assert knobs.runtime.jit_post_compile_hook(key="k", repr="attend[...]", already_compiled=False) is None
    assert told == others == ["attend[...]"]


def test_warming_up_covers_the_largest_steps():
    steps = list(warm_up_steps(StepSizes(seqs=20, tokens=64, context=256), 16))
    lengths = [[chunk.end - chunk.start for chunk in step] for step in steps]
    assert [64] in lengths
    assert [1] * 20 in lengths
    assert all(sum(step) <= 64 + 20 for step in lengths)
    assert {len(step) for step in lengths if set(step) == {1}} == set(graph_sizes(20))
