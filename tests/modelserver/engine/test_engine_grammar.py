"""Answers held to grammars: they follow them to the end, and a bad grammar is its own request's trouble."""

import json
import multiprocessing
import re
import threading
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine import grammar_compiler
from multimodel_server.engine.grammar import END, GrammarError, GrammarGuide, read_tokenizer
from multimodel_server.engine.grammar_compiler import GrammarCompiler
from multimodel_server.engine.loading import load
from multimodel_server.engine.loop import Engine
from multimodel_server.engine.messages import (
    Cancel,
    Generate,
    Grammar,
    RequestFailed,
    Sampling,
    Step,
    decode_from_engine,
    encode,
)
from multimodel_server.engine.request import Request
from multimodel_server.engine.sampler import guide_request, sample

MODELS = Path(__file__).parents[3] / "examples" / "models"
TOKENIZER = MODELS / "scribe" / "tokenizer.json"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "tired"]},
        "pets": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "mood", "pets"],
    "additionalProperties": False,
}
WAIT_SECONDS = 30


def schema(definition):
    return Grammar("json_schema", json.dumps(definition))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TOKENIZER))


@pytest.fixture(scope="module")
def guide():
    """Return the guide of a grammar for the example tokenizer."""
    known = read_tokenizer(TOKENIZER, 0)
    return lambda grammar: GrammarGuide.start(grammar, known)


@pytest.fixture
def compiler():
    made = GrammarCompiler(TOKENIZER, 0)
    yield made
    made.close()


def settled(compiler):
    """Return the first request or failure that the compiler comes up with."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := compiler.settled():
            return found[0]
        time.sleep(0.001)
    raise TimeoutError


def guided(name, grammar, stop=frozenset({4}), prompt=(0, 9)):
    return Request(name, list(prompt), len(prompt), Sampling(max_tokens=50, grammar=grammar, stop_token_ids=stop))


def texts_of(engine, requests, decode):
    """Run requests to their ends; return their texts and why they ended."""
    for request in requests:
        engine.scheduler.add(request)
    ids, reasons = {}, {}
    while engine.scheduler.has_work:
        for told in engine.step():
            assert not isinstance(told, RequestFailed), told
            ids.setdefault(told.request_id, []).extend(told.token_ids)
            reasons[told.request_id] = told.finish_reason
    return {name: decode(tokens) for name, tokens in ids.items()}, reasons


GRAMMARS = {
    "schema": (schema(PERSON), lambda text: _is_person(json.loads(text))),
    "regex": (Grammar("regex", r"(yes|no), [0-9]{3}\.?"), re.compile(r"(yes|no), [0-9]{3}\.?").fullmatch),
    "lark": (
        Grammar("lark", 'start: item ("+" item)~2\nitem: /[0-9]{1,2}/'),
        re.compile(r"[0-9]{1,2}(\+[0-9]{1,2}){2}").fullmatch,
    ),
    "exact": (Grammar("regex", "hello"), "hello".__eq__),
}


def _is_person(value):
    assert list(value) == ["name", "age", "mood", "pets"]
    assert re.fullmatch("[A-Z][a-z]{1,9}", value["name"])
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    assert value["mood"] in ("glad", "tired")
    assert len(value["pets"]) <= 2
    return all(type(pet) is bool for pet in value["pets"])


@pytest.mark.parametrize(
    ("model", "temperature", "settings"),
    [
        ("scribe", 0.0, {}),
        ("scribe", 1.5, {"context_len": 144, "block_size": 8}),
        ("abacus", 0.0, {"max_seqs": 1}),
    ],
)
def test_answers_follow_their_grammars_to_the_end(stepped_engine, settings, model, temperature):
    path = MODELS / model
    known = read_tokenizer(path / "tokenizer.json", 0)
    end = json.loads((path / "generation_config.json").read_text())["eos_token_id"]
    stops = frozenset([end] if isinstance(end, int) else end)
    words = Tokenizer.from_file(str(path / "tokenizer.json"))
    requests = []
    for name, (grammar, _) in GRAMMARS.items():
        prompt = words.encode("Hello! Who are you?").ids
        options = Sampling(max_tokens=120, temperature=temperature, grammar=grammar, stop_token_ids=stops, seed=3)
        requests.append(Request(name, prompt, len(prompt), options))
        guide_request(requests[-1], GrammarGuide.start(grammar, known))
    free = Request("free", list(prompt), len(prompt), Sampling(max_tokens=100))
    engine = stepped_engine(path, **settings)
    texts, reasons = texts_of(engine, [*requests, free], words.decode)
    assert (engine.scheduler.preemptions > 0) == ("context_len" in settings)
    for name, (_, is_right) in GRAMMARS.items():
        assert is_right(texts[name]), texts[name]
        assert reasons[name] == "stop"


ANY_OBJECT = schema({"type": "object"})


@pytest.mark.parametrize(
    ("grammar", "text", "followed"),
    [
        (ANY_OBJECT, '{"a": [1, 2.5, null], "b": {"c": "x"}}', "all"),
        (ANY_OBJECT, '{"a":true,"b":[]}', "all"),
        (ANY_OBJECT, "[1]", "not"),
        (ANY_OBJECT, ' {"a": 1}', "not"),
        (ANY_OBJECT, '{"a":  1}', "not"),  # a model that has lost its way fills its answer with blanks
        (schema({"type": "object", "properties": {"a": {"type": "integer"}}}), '{"a": "x"}', "not"),
        (schema({"type": "string"}), '"say \\"hi\\""', "all"),
        (Grammar("regex", "a{2,3}"), "aa", "all"),
        (Grammar("regex", "a{2,3}"), "a", "part"),
        (Grammar("regex", "a{2,3}"), "aaaa", "not"),
        (Grammar("lark", 'start: %json {"type": "integer"} ";"'), "17;", "all"),
    ],
)
def test_what_a_grammar_lets_pass(guide, tokenizer, grammar, text, followed):
    following = guide(grammar)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    if followed == "not":
        with pytest.raises(GrammarError):
            following.advance(tokens)
        return
    for token in tokens:
        logits = torch.zeros(tokenizer.get_vocab_size())
        following.mask(logits, frozenset({4}))
        assert logits[token] == 0
        following.advance([token])
    logits = torch.zeros(tokenizer.get_vocab_size())
    following.mask(logits, frozenset({4}))
    assert (logits[4] == 0) == (followed == "all")


def test_the_answer_ends_only_where_the_grammar_allows_it(guide, tokenizer):
    a, b = (tokenizer.token_to_id(letter) for letter in "ab")
    following = guide(Grammar("regex", "ab?"))
    stops = frozenset({1, 4, b})  # stop tokens may be text; then the grammar allows them as such
    seen = []
    for token in (a, b):
        logits = torch.zeros(tokenizer.get_vocab_size() + 10)  # some models have rows that no token uses
        following.mask(logits, stops)
        seen.append(set(logits.isfinite().nonzero()[:, 0].tolist()))
        following.advance([token])
    assert seen == [{a}, {b, 1, 4}]
    assert following.is_finished
    with pytest.raises(GrammarError, match="no end token"):
        following.mask(torch.zeros(tokenizer.get_vocab_size()), frozenset())


def test_a_tokenizer_may_know_more_tokens_than_the_model(guide):
    logits = torch.zeros(200)
    guide(Grammar("regex", "[a-z]+")).mask(logits, frozenset({4}))
    assert 0 < logits.isfinite().sum() < 200


def test_the_end_of_a_grammar_is_no_token_of_the_tokenizer(tokenizer):
    assert END not in tokenizer.get_vocab(with_added_tokens=True)


BAD = {
    "a type that JSON does not know": (schema({"type": "strin"}), "Invalid type: strin"),
    "no JSON": (Grammar("json_schema", "{nope"), "key must be a string"),
    "keywords that are not enforced": (schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
    "a schema from elsewhere": (schema({"$ref": "http://localhost/x"}), "does not fetch resources"),
    "a schema that is itself": (schema({"$ref": "#"}), "no text can match it"),
    "contradiction": (schema({"type": "string", "allOf": [{"type": "integer"}]}), "Unsatisfiable"),
    "nested too deep": (Grammar("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000), "recursion limit"),
    "an open bracket": (Grammar("regex", "(a"), "unclosed group"),
    "look-ahead": (Grammar("regex", "(?=a)b"), "look-around"),
    "an unknown rule": (Grammar("lark", "start: nowhere"), 'unknown name: "nowhere"'),
    "a rule without end": (Grammar("lark", "start: start"), "no text can match it"),
    "no Lark": (Grammar("lark", "start: ((("), "Expected token"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_grammar_is_refused_in_words(compiler, name):  # bug 21
    grammar, problem = BAD[name]
    compiler.submit(guided("bad", grammar), grammar)
    failed = settled(compiler)
    assert failed.invalid
    assert failed.message.startswith("the grammar cannot be used: ")
    assert problem in failed.message
    assert len(failed.message) < 500
    assert not compiler.pending


@pytest.mark.parametrize(
    "grammar",
    [
        schema({"enum": [f"value {number}" for number in range(4000)]}),
        schema({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1500)}}),
        Grammar("regex", "((a{1000}){1000}){1000}"),
        Grammar("regex", "(a|b|ab)*c" * 5000),
        Grammar("lark", "start: " + " | ".join(f'"{n}" start' for n in range(3000)) + ' | "x"'),
    ],
    ids=["enum", "properties", "repetition", "alternatives", "recursion"],
)
def test_a_giant_grammar_is_compiled_or_refused_within_seconds(compiler, grammar):  # bug 21
    began = time.monotonic()
    request = guided("giant", grammar)
    compiler.submit(request, grammar)
    outcome = settled(compiler)
    assert time.monotonic() - began < 10
    if isinstance(outcome, Request):
        (result,) = sample(torch.zeros((1, 5000)), [outcome])
        assert (result.token is None) != (result.error is None)
    else:
        assert outcome.invalid


def test_a_grammar_that_takes_too_long_is_given_up_and_holds_up_no_other(monkeypatch):  # bug 21
    stuck = threading.Event()
    start = GrammarGuide.start

    def slow(grammar, known):
        if grammar.text == "slow":
            assert stuck.wait(WAIT_SECONDS)
        return start(grammar, known)

    monkeypatch.setattr(grammar_compiler.GrammarGuide, "start", slow)
    now = [0.0]
    compiler = GrammarCompiler(TOKENIZER, 0, seconds=5, now=lambda: now[0])
    try:
        for name in ("slow", "quick"):
            grammar = Grammar("regex", name)
            compiler.submit(guided(name, grammar), grammar)
        assert settled(compiler).request_id == "quick"
        assert compiler.pending
        now[0] = 5.0
        message = "the grammar was not compiled within 5 s; use a simpler one"
        assert compiler.settled() == [RequestFailed("slow", message, invalid=True)]
        assert not compiler.pending
    finally:
        stuck.set()
        compiler.close()


def test_a_request_cancelled_while_its_grammar_compiles_never_comes_back(compiler):
    grammar = Grammar("regex", "a")
    for name in ("gone", "stays"):
        compiler.submit(guided(name, grammar), grammar)
    compiler.cancel("gone")
    compiler.cancel("unknown")
    assert settled(compiler).request_id == "stays"
    assert compiler.settled() == []


def test_without_a_tokenizer_only_requests_with_grammars_fail(tmp_path):
    compiler = GrammarCompiler(tmp_path / "tokenizer.json", 10)
    grammar = Grammar("regex", "a")
    compiler.submit(guided("r", grammar), grammar)
    failed = settled(compiler)
    compiler.close()
    assert not failed.invalid
    assert "FileNotFoundError" in failed.message


def test_a_grammar_that_breaks_amid_an_answer_ends_its_request_alone(guide, monkeypatch):
    grammar = Grammar("regex", "[a-z]+")
    requests = [guided(name, grammar) for name in ("first", "broken", "last")]
    for request in requests:
        guide_request(request, guide(grammar))

    mask = GrammarGuide.mask
    broken = requests[1].sampling_state._guide

    def fault(self, logits, stops):
        if self is broken:
            raise GrammarError("too many states")
        mask(self, logits, stops)

    monkeypatch.setattr(GrammarGuide, "mask", fault)
    outcomes = sample(torch.zeros((3, 500)), requests)
    assert [outcome.error for outcome in outcomes] == [None, "the grammar cannot be followed: too many states", None]
    assert outcomes[0].token == outcomes[2].token is not None


@pytest.fixture
def engine_and_pipe():
    ours, theirs = multiprocessing.Pipe()
    config = EngineConfig(MODELS / "scribe", kv_size=KvSize(context_len=1024))
    with ours, theirs:
        engine = Engine(load(config, lambda *_: None), theirs)
        yield engine, ours
        engine.grammars.close()


def run_until(engine, pipe, done):
    """Turn the engine until `done` holds for all that it said."""
    said = []
    deadline = time.monotonic() + WAIT_SECONDS
    while not done(said):
        assert time.monotonic() < deadline, said
        assert engine.drain()
        engine.turn()
        while pipe.poll():
            message = decode_from_engine(pipe.recv_bytes())
            said += message.tokens if isinstance(message, Step) else [message]
    return said


def ended(name):
    return lambda said: any(
        getattr(message, "request_id", None) == name
        and (isinstance(message, RequestFailed) or message.finish_reason is not None)
        for message in said
    )


def test_a_bad_schema_fails_alone_while_others_are_answered(engine_and_pipe, tokenizer):  # bug 21
    engine, pipe = engine_and_pipe
    pipe.send_bytes(encode(Generate("free", [0, 9], Sampling(max_tokens=200))))
    for name, (grammar, _) in BAD.items():
        pipe.send_bytes(encode(Generate(name, [0, 9], Sampling(max_tokens=9, grammar=grammar))))
    good = Sampling(max_tokens=120, grammar=schema(PERSON), stop_token_ids=frozenset({4}))
    pipe.send_bytes(encode(Generate("good", [0, 9], good)))
    pipe.send_bytes(encode(Generate("gone", [0, 9], good)))
    pipe.send_bytes(encode(Cancel("gone")))
    said = run_until(engine, pipe, lambda said: ended("free")(said) and ended("good")(said))
    failed = {message.request_id for message in said if isinstance(message, RequestFailed)}
    assert failed == set(BAD)
    tokens = [token for message in said if getattr(message, "request_id", "") == "good" for token in message.token_ids]
    assert _is_person(json.loads(tokenizer.decode(tokens)))
    assert not any(getattr(message, "request_id", "") == "gone" for message in said)
    assert not engine.scheduler.has_work
    assert engine.scheduler.problems() == []


def test_a_bias_for_a_token_beyond_the_vocabulary_is_refused(engine_and_pipe):
    engine, pipe = engine_and_pipe
    pipe.send_bytes(encode(Generate("r", [0, 9], Sampling(max_tokens=2, logit_bias={10**6: 1.0}))))
    (failed,) = [told for told in run_until(engine, pipe, ended("r")) if isinstance(told, RequestFailed)]
    assert failed.invalid
    assert "logit_bias names token 1000000" in failed.message
