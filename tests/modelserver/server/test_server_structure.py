"""Structured output and sampling options over HTTP, on a model of random weights: only grammars make sense of it."""

import json
import re
import threading

import openai
import pytest

ASK = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Oslo"]}, "degrees": {"type": "integer", "minimum": -40, "maximum": 50}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}


def as_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.fixture
def client(server):
    with server.openai() as made:
        yield made


def ask(client, **fields):
    return client.chat.completions.create(model="default", messages=ASK, **fields)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_follows_its_schema_and_ends(client, temperature):
    choice = ask(client, response_format=as_format(WEATHER), temperature=temperature).choices[0]
    weather = json.loads(choice.message.content)
    assert list(weather) == ["city", "degrees"]
    assert weather["city"] in ("Bern", "Oslo")
    assert -40 <= weather["degrees"] <= 50
    assert choice.finish_reason == "stop"


def test_a_streamed_answer_follows_its_grammar(client):
    grammar = {"type": "regex", "value": "(red|green) [0-9]{2}"}
    chunks = ask(client, stream=True, extra_body={"grammar": grammar})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert re.fullmatch(grammar["value"], text)


def test_a_bad_schema_is_refused_while_another_answer_goes_on(client):  # bug 21
    texts = []
    other = threading.Thread(
        target=lambda: texts.append(ask(client, max_tokens=150, temperature=0).choices[0].message.content)
    )
    other.start()
    for schema in ({"type": "strin"}, {"$ref": "#"}, {"not": {}}):
        with pytest.raises(openai.BadRequestError, match="the grammar cannot be used"):
            ask(client, response_format=as_format(schema))
    other.join()
    assert texts == [ask(client, max_tokens=150, temperature=0).choices[0].message.content]


def test_a_bias_forces_a_token(server, client):
    with server.http() as http:
        token = http.post("/tokenize", json={"prompt": "hello", "add_special_tokens": False}).json()["tokens"][-1]
        word = http.post("/detokenize", json={"tokens": [token]}).json()["prompt"]
    answer = ask(client, max_tokens=4, temperature=0, logit_bias={str(token): 100})
    assert answer.choices[0].message.content == word * 4


def test_penalties_leave_no_token_twice(server):
    with server.http() as http:
        fields = {"prompt": "hello", "max_tokens": 60, "temperature": 0, "logprobs": 0}
        texts = []
        for penalties in ({}, {"presence_penalty": 2, "repetition_penalty": 100}):
            answer = http.post("/v1/completions", json={**fields, **penalties}).json()
            tokens = answer["choices"][0]["logprobs"]["tokens"]
            texts.append([token for token in tokens if token])  # the model has more tokens than its tokenizer
    repeats = [len(tokens) - len(set(tokens)) for tokens in texts]
    assert repeats[1] == 0 < repeats[0], texts


def test_ignore_eos_answers_to_the_limit(client):
    bias = {"1": 100}  # </s>
    assert ask(client, max_tokens=5, logit_bias=bias).choices[0].finish_reason == "stop"
    answer = ask(client, max_tokens=5, logit_bias=bias, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
