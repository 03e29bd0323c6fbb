"""Streams that break at any marker and go on at another server: the client sees what it would have seen of one."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from multimodel_api.resume import RESUMABLE_HEADER, STATE_HEADER, MarkerReader, Resume, resuming

EXAMPLES = Path(__file__).parents[3] / "examples" / "models"
CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
RESUMABLE = {RESUMABLE_HEADER: "1"}
SUM = [{"role": "user", "content": "What is 17 + 25?"}]
SPELL = [{"role": "user", "content": "Spell cat"}]
THINKS = {"type": "lark", "value": 'start: "I STOP here.\\n</think>\\n\\n" "Yes, 🎉 it STOPS."'}
PARAMETERS = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 100, "maximum": 999}},
    "required": ["days"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "trip", "schema": PARAMETERS}}
TOOL = {"type": "function", "function": {"name": "go", "parameters": PARAMETERS}}
RANDOM = {"temperature": 1.5, "max_tokens": 24}
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 1, "dry_multiplier": 1}
MUST_CALL = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60}
ECHO = {"echo": True, "logprobs": 1, "stream_options": {"include_usage": True}}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("abacus", CHAT, {"messages": SUM}),
    "chat at random": ("scribe", CHAT, {"messages": SPELL, **RANDOM}),
    "seed and penalties": ("scribe", CHAT, {"messages": SPELL, **RANDOM, **PENALTIES, "seed": -5}),
    "usage and length": (
        "abacus",
        CHAT,
        {"messages": SUM, "max_tokens": 9, "stream_options": {"include_usage": True}},
    ),
    "stop strings": ("abacus", CHAT, {"messages": SUM, "stop": ["= 4", "12 = 43"]}),
    "logprobs": ("abacus", CHAT, {"messages": SUM, "logprobs": True, "top_logprobs": 2}),
    "logprobs and stop strings": (
        "abacus",
        CHAT,
        {"messages": SUM, "logprobs": True, "stop": ["25 = 31", "30 + 12 = 42?"]},
    ),
    "JSON schema": ("abacus", CHAT, {"messages": SUM, "response_format": SCHEMA, **RANDOM}),
    "tool call": ("scribe", CHAT, {"messages": SPELL, **MUST_CALL}),
    "tool call of another format": ("abacus", CHAT, {"messages": SUM, **MUST_CALL, "temperature": 1}),
    "reasoning": ("tiny", CHAT, {"messages": SUM, "grammar": THINKS, "enable_thinking": True}),
    "reasoning and stop strings": (
        "tiny",
        CHAT,
        {"messages": SUM, "grammar": THINKS, "enable_thinking": True, "stop": "STOP", "logprobs": True},
    ),
    "characters of several tokens": ("tiny", CHAT, {"messages": SUM, "max_tokens": 40}),
    "completion": ("abacus", COMPLETIONS, {"prompt": "What is 3 + 4?", "max_tokens": 12}),
    "completion with an echo": (
        "abacus",
        COMPLETIONS,
        {"prompt": "What is", "max_tokens": 12, "temperature": 1, "seed": 3, **ECHO},
    ),
    "completion of token ids": ("tiny", COMPLETIONS, {"prompt": [[5, 6, 7]], **RANDOM, "logprobs": 0}),
    "message": ("abacus", MESSAGES, {"messages": SUM, "max_tokens": 30, "stop_sequences": ["42"]}),
    "message that thinks": (
        "tiny",
        MESSAGES,
        {"messages": SUM, "max_tokens": 60, "grammar": THINKS, "thinking": {"type": "enabled"}},
    ),
    "message that calls": (
        "scribe",
        MESSAGES,
        {
            "messages": SPELL,
            "max_tokens": 60,
            "tools": [{"name": "go", "input_schema": PARAMETERS}],
            "tool_choice": {"type": "any"},
        },
    ),
    "response": ("abacus", RESPONSES, {"input": "What is 17 + 25?", "max_output_tokens": 30}),
    "response that calls": (
        "scribe",
        RESPONSES,
        {
            "input": "Spell cat",
            "tools": [{"type": "function", "name": "go", "parameters": PARAMETERS}],
            "tool_choice": "required",
            "temperature": 1,
            "max_output_tokens": 60,
        },
    ),
}


class Stream(NamedTuple):
    """A marked stream as the server sent it."""

    state: str
    sent: bytes

    @property
    def seen(self) -> bytes:
        """What a client sees of it."""
        return MarkerReader().feed(self.sent)


def body_of(fields: dict[str, Any]) -> bytes:
    return json.dumps({**fields, "stream": True}).encode()


def ask(client: httpx.Client, path: str, body: bytes) -> Stream:
    response = client.post(path, content=body, headers=RESUMABLE)
    assert response.status_code == 200, response.text
    return Stream(response.headers[STATE_HEADER], response.content)


def cuts(sent: bytes) -> list[int]:
    """Return the places after each marker but the last."""
    return [match.end() for match in re.finditer(rb"(?m)^: resume( [0-9]+)*\n\n", sent)]


def same(sent: bytes, expected: bytes) -> bool:
    """Compare streams; the last digits of log-probabilities depend on how the tokens were batched."""
    number = rb"-?[0-9]+\.[0-9]+(?:e-?[0-9]+)?"
    ours, theirs = (list(map(float, re.findall(number, stream))) for stream in (sent, expected))
    return re.sub(number, b"", sent) == re.sub(number, b"", expected) and ours == pytest.approx(theirs, abs=1e-3)


@pytest.fixture(scope="module")
def clients(server: Any, launch_server: Callable[..., Any]) -> Iterator[dict[str, httpx.Client]]:
    """Clients of three servers."""
    running = {name: launch_server("--model", EXAMPLES / name, "--alias", name) for name in ("abacus", "scribe")}
    try:
        for one in running.values():
            one.wait_until_ready()
        with ExitStack() as stack:
            servers = {**running, "tiny": server}
            yield {name: stack.enter_context(one.http()) for name, one in servers.items()}
    finally:
        for one in running.values():
            one.stop()


@pytest.mark.parametrize("case", CASES)
def test_a_stream_goes_on_after_any_marker(clients: dict[str, httpx.Client], case: str) -> None:
    model, path, fields = CASES[case]
    body = body_of(fields)
    whole = ask(clients[model], path, body)
    places = cuts(whole.sent)
    assert len(places) > 3, whole.sent
    for place in places:
        reader = MarkerReader()
        reader.feed(whole.sent[:place])
        rest = ask(clients[model], path, resuming(body, Resume(state=whole.state, token_ids=reader.token_ids)))
        assert same(rest.sent, whole.sent[place:]), (whole.sent[:place], whole.sent[place:], rest.sent)
        assert rest.state == whole.state


@pytest.mark.parametrize("case", ["usage and length", "logprobs and stop strings", "message that calls", "response"])
def test_but_for_markers_and_names_a_stream_is_as_without(clients: dict[str, httpx.Client], case: str) -> None:
    model, path, fields = CASES[case]
    body = body_of({**fields, "temperature": 1, "seed": 1})

    def unnamed(sent: bytes) -> bytes:
        without_calls = re.sub(rb'"(call_)?id":"\w{9}"', b"", sent)
        without_times = re.sub(rb'"created(_at)?":[0-9]+|"cached_tokens":[0-9]+', b"", without_calls)
        return re.sub(rb"_input_tokens\":[0-9]+|[0-9a-f]{24}", b"", without_times.replace(b'"input', b'"_input'))

    clients[model].post(path, content=body)  # Now the prompt is in the prefix cache.
    plain = clients[model].post(path, content=body)
    assert STATE_HEADER not in plain.headers
    assert b": resume" not in plain.content
    assert same(unnamed(ask(clients[model], path, body).seen), unnamed(plain.content))


@pytest.mark.parametrize(
    "fields",
    [{"n": 2, "stream": True}, {"n": 2, "best_of": 2, "stream": True}, {"prompt": ["a", "b"], "stream": True}, {}],
)
def test_what_cannot_go_on_has_no_markers(clients: dict[str, httpx.Client], fields: dict[str, Any]) -> None:
    body = {"prompt": "a", "max_tokens": 4, **fields}
    response = clients["tiny"].post(COMPLETIONS, json=body, headers=RESUMABLE)
    assert response.status_code == 200
    assert STATE_HEADER not in response.headers
    assert b": resume" not in response.content


def test_a_completion_that_nothing_was_seen_of_begins_anew(clients: dict[str, httpx.Client]) -> None:
    body = body_of({"prompt": "a", "max_tokens": 6, "temperature": 1, "echo": True, "logprobs": 1})
    whole = ask(clients["tiny"], COMPLETIONS, body)
    again = ask(clients["tiny"], COMPLETIONS, resuming(body, Resume(state=whole.state, token_ids=[])))
    assert same(again.sent, whole.sent)


@pytest.mark.parametrize("end", [{"max_tokens": 9}, {"stop": "30 +"}])
def test_after_all_tokens_only_the_end_is_left(clients: dict[str, httpx.Client], end: dict[str, Any]) -> None:
    longer = MarkerReader()
    longer.feed(ask(clients["abacus"], CHAT, body_of({"messages": SUM})).sent)
    body = body_of({"messages": SUM, "stream_options": {"include_usage": True}, **end})
    whole = ask(clients["abacus"], CHAT, body)
    count = int(re.findall(rb'"completion_tokens":([0-9]+)', whole.sent)[0])
    resume = Resume(state=whole.state, token_ids=longer.token_ids[:count])
    assert ask(clients["abacus"], CHAT, resuming(body, resume)).sent == whole.sent[cuts(whole.sent)[-1] :]
    resume = Resume(state=whole.state, token_ids=longer.token_ids[: count + 1])
    refused = clients["abacus"].post(CHAT, content=resuming(body, resume), headers=RESUMABLE)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "multimodel_resume.token_ids")


@pytest.mark.parametrize(
    ("fields", "resume", "param"),
    [
        ({}, {"state": "?"}, "multimodel_resume.state"),
        ({}, {"state": "AAAA"}, "multimodel_resume.state"),
        ({}, {"state": "A" * 513}, "multimodel_resume.state"),
        ({"messages": SUM}, {}, "multimodel_resume.state"),
        ({}, {"token_ids": [384]}, "multimodel_resume.token_ids"),
        ({}, {"token_ids": [-1]}, "multimodel_resume.token_ids[0]"),
        ({}, {"token_ids": [5] * 13}, "multimodel_resume.token_ids"),
        ({"grammar": {"type": "regex", "value": "[0-9]+"}}, {"token_ids": [70]}, "multimodel_resume.token_ids"),
        ({"n": 2}, {}, "multimodel_resume"),
        ({"stream": False}, {}, "multimodel_resume"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(
    clients: dict[str, httpx.Client], fields: dict[str, Any], resume: dict[str, Any], param: str
) -> None:
    given = {"messages": SPELL, "max_tokens": 12, "stream": True}
    state = ask(clients["tiny"], CHAT, json.dumps(given).encode()).state
    asked = {"multimodel_resume": {"state": state, "token_ids": [5], **resume}, **given, **fields}
    body = json.dumps(asked, separators=(",", ":")).encode()
    response = clients["tiny"].post(CHAT, content=body, headers=RESUMABLE)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert clients["tiny"].post(CHAT, content=body).status_code == 200, "without the header the field means nothing"


def test_another_server_goes_on_where_one_was_killed(
    clients: dict[str, httpx.Client], start_server: Callable[..., Any], tiny_model: Path
) -> None:
    sampling = {"max_tokens": 300, "temperature": 1, "ignore_eos": True}
    body = body_of({"messages": SUM, **sampling, "stream_options": {"include_usage": True}})
    victim = start_server("--model", tiny_model, "--alias", "tiny").wait_until_ready()
    reader = MarkerReader()
    seen = b""
    with victim.http() as client, client.stream("POST", CHAT, content=body, headers=RESUMABLE) as response:
        state = response.headers[STATE_HEADER]
        with pytest.raises(httpx.RemoteProtocolError):
            for data in response.iter_raw():
                seen += reader.feed(data)
                if len(reader.token_ids) >= 20:
                    victim.process.kill()
    assert not reader.ended
    before = len(reader.token_ids)
    rest = ask(clients["tiny"], CHAT, resuming(body, Resume(state=state, token_ids=reader.token_ids)))
    reader = MarkerReader(reader.token_ids)
    seen += reader.feed(rest.sent)
    assert reader.ended
    assert 20 <= before < len(reader.token_ids)
    whole = ask(clients["tiny"], CHAT, resuming(body, Resume(state=state, token_ids=[])))
    role = seen.partition(b"\n\n")[0] + b"\n\n"
    assert seen == role + whole.seen
    events = seen.removesuffix(b"\n\ndata: [DONE]\n\n").split(b"\n\n")
    documents = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert documents[-1]["usage"]["completion_tokens"] == 300
    assert len({document["id"] for document in documents}) == 1


def test_a_stream_whose_engine_dies_has_no_last_marker(start_server: Callable[..., Any], tiny_model: Path) -> None:
    victim = start_server("--model", tiny_model).wait_until_ready()
    body = body_of({"messages": SUM, "max_tokens": 1900})
    reader, killed = MarkerReader(), False
    with victim.http() as client, client.stream("POST", CHAT, content=body, headers=RESUMABLE) as response:
        for data in response.iter_raw():
            reader.feed(data)
            if not killed and len(reader.token_ids) >= 20:
                victim.engine().kill()
                killed = True
    assert not reader.ended
    assert json.loads(reader.held.removeprefix(b"data: "))["error"]["code"] == "engine_crashed"
