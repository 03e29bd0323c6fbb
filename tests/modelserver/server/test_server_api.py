"""The OpenAI routes of a real server, through the official client."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hello world"}]


def chat(server: Any, **fields: Any) -> Any:
    with server.openai() as client:
        return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 24, **fields})


def streamed(server: Any, **fields: Any) -> list[Any]:
    with server.openai() as client:
        given = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "stream": True, **fields}
        return list(client.chat.completions.create(**given))


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_completion(server: Any) -> None:
    completion = chat(server)
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", completion.id)
    assert (completion.object, completion.model) == ("chat.completion", "tiny")
    (choice,) = completion.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert choice.message.content
    assert completion.usage.completion_tokens == 24
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 24


def test_a_stream_says_the_same_as_the_whole(server: Any) -> None:
    chunks = streamed(server, stream_options={"include_usage": True})
    whole = chat(server)
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1


def test_the_events_of_a_stream(server: Any) -> None:
    with server.http() as client:
        body = {"messages": HELLO, "max_tokens": 2, "stream": True}
        response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    documents = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert all("usage" not in document for document in documents)
    assert documents[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    ]
    assert documents[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]


def test_completions_whole_and_streamed(server: Any) -> None:
    with server.openai() as client:
        whole = client.completions.create(model="tiny", prompt="one two", max_tokens=9)
        chunks = list(
            client.completions.create(
                model="tiny", prompt="one two", max_tokens=9, stream=True, stream_options={"include_usage": True}
            )
        )
    assert re.fullmatch(r"cmpl-[0-9a-f]{24}", whole.id)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert (whole.choices[0].finish_reason, chunks[-2].choices[0].finish_reason) == ("length", "length")
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


@pytest.mark.parametrize("temperature", [0, 1])
def test_greedy_and_seeded_streams_equal_the_whole(server: Any, temperature: int) -> None:
    fields = {"temperature": temperature, "seed": 3, "max_tokens": 60}
    assert text_of(streamed(server, **fields)) == chat(server, **fields).choices[0].message.content


def test_greedy_tokens_equal_transformers(server: Any, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=1)
    expected = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert chat(server).choices[0].message.content == expected


def test_a_seed_makes_an_answer_repeatable(server: Any) -> None:
    answers = [chat(server, temperature=1.5, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
    assert answers[0] == answers[1] != answers[2]
    assert (
        chat(server, temperature=2).choices[0].message.content != chat(server, temperature=2).choices[0].message.content
    )


def test_a_stop_string_ends_the_answer_and_is_not_in_it(server: Any) -> None:
    whole = chat(server).choices[0].message.content
    stop = whole[8:11]
    expected = whole[: whole.index(stop)]
    completion = chat(server, stop=[stop, "never there"])
    assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == (expected, "stop")
    chunks = streamed(server, stop=stop)
    assert (text_of(chunks), chunks[-1].choices[0].finish_reason) == (expected, "stop")


def test_a_stop_string_frees_the_engine(server: Any, until: Callable[..., None]) -> None:
    stop = chat(server).choices[0].message.content[2:4]
    chat(server, stop=stop, max_tokens=1900)
    until(lambda: server.metric("multimodel_requests_running") == 0, 10)
    assert server.metric("multimodel_kv_blocks_used") == 0


def test_concurrent_streams_equal_their_solo_answers(server: Any) -> None:
    asked = [[{"role": "user", "content": f"count {number} " * (number + 1)}] for number in range(8)]

    def ask(messages: list[dict[str, str]]) -> str:
        return text_of(streamed(server, messages=messages, max_tokens=64))

    alone = [ask(messages) for messages in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, asked)) == alone
    assert len(set(alone)) == 8


@pytest.mark.parametrize("model", ["tiny", "default", None])
def test_every_id_is_served_and_the_reply_names_the_api_id(server: Any, tiny_model: Path, model: str | None) -> None:
    with server.http() as client:
        for given in (model, str(tiny_model)):
            body = {"messages": HELLO, "max_tokens": 1} | ({} if given is None else {"model": given})
            assert client.post("/v1/chat/completions", json=body).json()["model"] == "tiny"


def test_without_max_tokens_the_answer_may_fill_the_context(server: Any) -> None:
    prompt = "one two three " * 450
    with server.http() as client:
        completion = client.post("/v1/completions", json={"prompt": prompt}).json()
    assert completion["usage"]["total_tokens"] == 2048
    assert completion["choices"][0]["finish_reason"] == "length"


def test_max_completion_tokens_wins(server: Any) -> None:
    assert chat(server, max_tokens=9, max_completion_tokens=2).usage.completion_tokens == 2


def test_the_list_of_models(server: Any, tiny_model: Path) -> None:
    with server.openai() as client:
        (card,) = client.models.list().data
    assert (card.id, card.object, card.status, card.canonical_id) == ("tiny", "model", "loaded", str(tiny_model))


def test_health_and_progress(server: Any) -> None:
    with server.http() as client:
        assert client.get("/health/live").status_code == 200
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["phase"]) == (200, "ready")
        progress = client.get("/health/progress").json()
    assert (progress["phase"], progress["failure"]) == ("ready", None)
    assert {"starting", "reading_weights", "warming_up"} <= set(progress["seconds"])


def test_a_server_says_which_one_it_is(server: Any, tiny_model: Path, start_server: Callable[..., Any]) -> None:
    with server.http() as client:
        ready, again = (client.get("/health/ready").json() for _ in range(2))
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
        refused = client.post("/v1/completions", content=b"?")
    assert (ready["model"], ready["canonical_id"], ready["boot"]) == ("tiny", str(tiny_model), again["boot"])
    assert (answer.headers["x-multimodel-model"], refused.headers["x-multimodel-model"]) == ("tiny", "tiny")
    other = start_server("--model", tiny_model, "--alias", "größe/1").wait_until_ready()
    with other.http() as client:
        assert client.get("/health/ready").json()["boot"] not in ("", ready["boot"])
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
    assert answer.headers["x-multimodel-model"] == "gr%C3%B6%C3%9Fe%2F1"


def test_metrics_count_what_happened(server: Any) -> None:
    before = {
        name: server.metric(f"multimodel_{name}")
        for name in ("generated_tokens_total", "time_to_first_token_seconds_count", "requests_completed_total")
    }
    chat(server)
    assert server.metric("multimodel_generated_tokens_total") == before["generated_tokens_total"] + 24
    first_tokens = before["time_to_first_token_seconds_count"]
    assert server.metric("multimodel_time_to_first_token_seconds_count") == first_tokens + 1
    assert server.metric("multimodel_requests_completed_total") == before["requests_completed_total"] + 1
    assert server.metric("multimodel_kv_blocks_total") > 0
    with server.http() as client:
        text = client.get("/metrics").text
    assert re.search(r'multimodel_load_seconds\{model="tiny",phase="reading_weights"\} \d', text)
    assert 'reason="length"' in text


def test_the_warm_up_is_logged(server: Any) -> None:
    messages = server.messages
    begun = messages.index("Beginning dummy run.")
    assert re.fullmatch(r"Dummy run completed in \d+\.\d+s\.", messages[begun + 1])
