"""Several answers, log-probabilities, echoes, lists of prompts, and prompts cut to fit."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HELLO = [{"role": "user", "content": "hello world"}]
TOOL = {"type": "function", "function": {"name": "add"}}
REGEX = {"type": "regex", "value": "a"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def post(server: Any, path: str, **body: Any) -> Any:
    with server.http() as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(server: Any, path: str, **body: Any) -> list[Any]:
    with server.http() as client:
        response = client.post(path, json={**body, "stream": True})
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def refused(server: Any, path: str, **body: Any) -> dict[str, Any]:
    with server.http() as client:
        response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    return response.json()["error"]


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Any:
    """Returns, for token ids, the log-probabilities of every next token."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    def logprobs(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)

    return logprobs


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(tiny_model)


def test_choices_are_what_their_seeds_make_alone(server: Any) -> None:
    fields = {"messages": HELLO, "max_tokens": 12, "temperature": 1}
    choices = post(server, CHAT, **fields, n=3, seed=7)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    alone = [post(server, CHAT, **fields, seed=7 + index)["choices"][0] for index in range(3)]
    assert [choice["message"] for choice in choices] == [choice["message"] for choice in alone]
    assert len({choice["message"]["content"] for choice in choices}) == 3


def test_streamed_choices_are_the_whole_ones(server: Any) -> None:
    fields = {"messages": HELLO, "max_tokens": 12, "temperature": 1, "n": 3, "seed": 2**63 - 2}
    whole = post(server, CHAT, **fields)
    chunks = streamed(server, CHAT, **fields, stream_options={"include_usage": True})
    said = ["", "", ""]
    ends: list[int] = []
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        said[choice["index"]] += choice["delta"].get("content") or ""
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert said == [choice["message"]["content"] for choice in whole["choices"]]
    assert sorted(ends) == [0, 1, 2]
    for name in ("prompt_tokens", "completion_tokens"):
        assert chunks[-1]["usage"][name] == whole["usage"][name]
    assert whole["usage"]["completion_tokens"] == 36


def test_the_logprobs_of_a_chat_are_those_of_the_raw_logits(server: Any, oracle: Any, tokenizer: Any) -> None:
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 1.3, "seed": 5, "logprobs": True, "top_logprobs": 3}
    choice = post(server, CHAT, **body)["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert len(tokens) == 8
    assert (
        bytes(byte for token in tokens for byte in token["bytes"]).decode(errors="replace")
        == (choice["message"]["content"])
    )
    prompt = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    expected = oracle(prompt)[-1]
    top = torch.topk(expected, 3)
    assert [one["logprob"] for one in tokens[0]["top_logprobs"]] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert all(set(one) == {"token", "logprob", "bytes"} for token in tokens for one in token["top_logprobs"])
    chunks = streamed(server, CHAT, **body)
    again = [
        one
        for chunk in chunks
        for choice in chunk["choices"]
        for one in (choice.get("logprobs") or {}).get("content", [])
    ]
    assert again == tokens


def test_an_echoed_prompt_has_logprobs_and_offsets(server: Any, oracle: Any, tokenizer: Any) -> None:
    prompt = "one two schön 你好"
    body = {"prompt": prompt, "max_tokens": 5, "logprobs": 2, "echo": True, "temperature": 0}
    choice = post(server, COMPLETIONS, **body)["choices"][0]
    logprobs = choice["logprobs"]
    ids = tokenizer(prompt).input_ids
    assert choice["text"].startswith(prompt)
    assert len(logprobs["tokens"]) == len(ids) + 5
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    expected = oracle(ids)[range(len(ids) - 1), ids[1:]].tolist()
    assert logprobs["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    for token, offset in list(zip(logprobs["tokens"], logprobs["text_offset"], strict=True))[: len(ids)]:
        if not token.startswith(("bytes:", "<s>")):
            assert choice["text"][offset:].startswith(token)
    assert streamed_text(server, **body) == choice["text"]


def streamed_text(server: Any, **body: Any) -> str:
    return "".join(choice["text"] for chunk in streamed(server, COMPLETIONS, **body) for choice in chunk["choices"])


def test_only_the_likelihood_of_a_prompt(server: Any, oracle: Any) -> None:
    ids = [0, 70, 80, 90, 100]
    completion = post(server, COMPLETIONS, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    (choice,) = completion["choices"]
    expected = oracle(ids)[range(4), ids[1:]].tolist()
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert (len(choice["logprobs"]["tokens"]), completion["usage"]["completion_tokens"]) == (5, 0)


def test_the_best_of_several_are_the_likeliest(server: Any) -> None:
    body = {"prompt": "one two", "max_tokens": 6, "temperature": 1.5, "seed": 1, "logprobs": 0}
    every = post(server, COMPLETIONS, **body, n=5)["choices"]
    best = post(server, COMPLETIONS, **body, n=2, best_of=5)

    def mean(choice: Any) -> float:
        found = choice["logprobs"]["token_logprobs"]
        return sum(found) / len(found)

    expected = sorted(every, key=mean, reverse=True)[:2]
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in expected]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 30


def test_prompts_in_every_shape(server: Any, tokenizer: Any) -> None:
    texts = ["one two", "hello"]
    ids = [tokenizer(text).input_ids for text in texts]
    alone = [post(server, COMPLETIONS, prompt=text, max_tokens=6)["choices"][0]["text"] for text in texts]
    for prompt, expected in ((texts, alone), (ids, alone), (ids[1], alone[1:])):
        completion = post(server, COMPLETIONS, prompt=prompt, max_tokens=6)
        assert [choice["text"] for choice in completion["choices"]] == expected
    both = post(server, COMPLETIONS, prompt=texts, max_tokens=6, n=2, temperature=1)
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert both["usage"]["prompt_tokens"] == len(ids[0]) + len(ids[1])


def test_the_logprobs_of_a_stopped_text_end_with_it(server: Any) -> None:
    body = {"messages": HELLO, "max_tokens": 24, "logprobs": True}
    whole = post(server, CHAT, **body)["choices"][0]["message"]["content"]
    stop = whole[8:11]
    choice = post(server, CHAT, **body, stop=stop)["choices"][0]
    said = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"]).decode(errors="replace")
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert said.startswith(choice["message"]["content"])
    assert len(said) - len(choice["message"]["content"]) < 8


def test_stop_token_ids_end_the_answer(server: Any, tokenizer: Any) -> None:
    body = {"prompt": "one two", "max_tokens": 20, "logprobs": 0}
    tokens = post(server, COMPLETIONS, **body)["choices"][0]["logprobs"]["tokens"]
    stop = next(token for token in tokens[3:] if token.isascii() and token.isalnum())
    stop_id = tokenizer.convert_tokens_to_ids(stop)
    choice = post(server, COMPLETIONS, **body, stop_token_ids=[stop_id])["choices"][0]
    assert (choice["logprobs"]["tokens"], choice["finish_reason"]) == (tokens[: tokens.index(stop)], "stop")


def test_a_cached_prefix_is_counted(server: Any) -> None:
    prompt = "never said before: " + "one two three " * 12
    first = post(server, COMPLETIONS, prompt=prompt, max_tokens=1)["usage"]
    again = post(server, COMPLETIONS, prompt=prompt, max_tokens=1)["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] < again["prompt_tokens_details"]["cached_tokens"]
    assert again["prompt_tokens_details"]["cached_tokens"] < again["prompt_tokens"]


def test_a_prompt_that_is_too_long_is_cut_at_its_beginning_if_it_may_be(server: Any, tokenizer: Any) -> None:
    prompt = "xy" * 5000
    ids = tokenizer(prompt).input_ids
    cut = post(server, COMPLETIONS, prompt=prompt, max_tokens=4, truncate_sequence=True)
    expected = post(server, COMPLETIONS, prompt=[ids[0], *ids[-2043:]], max_tokens=4)
    assert cut["usage"]["prompt_tokens"] == 2044
    assert cut["choices"] == expected["choices"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": HELLO, "n": 0}, "n"),
        (CHAT, {"messages": HELLO, "n": 129}, "n"),
        (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"messages": HELLO, "tools": [TOOL, TOOL]}, "tools"),
        (CHAT, {"messages": HELLO, "tools": [TOOL], "tool_choice": named("sub")}, "tool_choice"),
        (CHAT, {"messages": HELLO, "tools": [{**TOOL, "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (CHAT, {"messages": HELLO, "tools": [TOOL], "tool_choice": "required", "grammar": REGEX}, "tool_choice"),
        (COMPLETIONS, {"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "echo"),
        (COMPLETIONS, {"prompt": [384]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", [1]]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 100, "n": 100}, "prompt"),
        ("/tokenize", {}, None),
        ("/detokenize", {"tokens": [1, 999]}, "tokens"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, "dimensions"),
        ("/v1/embeddings", {"input": "xy" * 5000}, "input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"input": "a", "background": True}, "background"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(server: Any, path: str, body: dict[str, Any], param: str | None) -> None:
    assert refused(server, path, **body)["param"] == param


def test_tokens_there_and_back(server: Any, tokenizer: Any) -> None:
    text = "hello, schön 🎉"
    tokens = post(server, "/tokenize", prompt=text, return_token_strs=True)
    assert tokens["tokens"] == tokenizer(text).input_ids
    assert tokens["token_strs"] == tokenizer.convert_ids_to_tokens(tokens["tokens"])
    assert (tokens["count"], tokens["max_model_len"]) == (len(tokens["tokens"]), 2048)
    assert post(server, "/detokenize", tokens=tokens["tokens"]) == {"prompt": f"<s>{text}"}
    bare = post(server, "/tokenize", prompt=text, add_special_tokens=False)
    assert bare["tokens"] == tokens["tokens"][1:]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_conversation_is_tokenised_as_it_is_sent_to_the_model(
    server: Any, tokenizer: Any, add_generation_prompt: bool
) -> None:
    tokens = post(server, "/tokenize", messages=HELLO, add_generation_prompt=add_generation_prompt)
    expected = tokenizer.apply_chat_template(HELLO, add_generation_prompt=add_generation_prompt, return_dict=False)
    assert tokens["tokens"] == expected


def test_a_client_that_leaves_ends_all_of_its_choices(server: Any, until: Callable[..., None]) -> None:
    def cancelled() -> float:
        return server.metric("multimodel_requests_completed_total", 'reason="cancelled"')

    before = cancelled()
    body = {"messages": HELLO, "n": 3, "max_tokens": 1900, "stream": True}
    with server.http() as client, client.stream("POST", CHAT, json=body) as response:
        next(response.iter_lines())
    until(lambda: cancelled() == before + 3, 20)
    until(lambda: server.metric("multimodel_requests_running") == 0, 20)


def test_a_long_prompt_does_not_hold_up_other_requests(server: Any) -> None:
    def tokenize() -> float:
        with server.http() as client:
            began = time.monotonic()
            assert client.post("/tokenize", json={"prompt": "schön, one two three! " * 40_000}).status_code == 200
            return time.monotonic() - began

    waits = []
    with ThreadPoolExecutor(1) as pool, server.http() as client:
        whole = pool.submit(tokenize)
        while not whole.done():
            began = time.monotonic()
            assert client.get("/health/live").status_code == 200
            waits.append(time.monotonic() - began)
    assert max(waits) < whole.result() / 2
