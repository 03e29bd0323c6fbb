"""Chat templates: the same prompt as transformers makes, found in the right place, harmless when hostile."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from multimodel_api.chat import ChatMessage
from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
from multimodel_server.text import template as template_module
from multimodel_server.text.model_text import load_text
from multimodel_server.text.template import ChatTemplate, TemplateFailure, find_template
from multimodel_server.text.tokenizer import TextTokenizer, TokenizerSettings

HELLO = [ChatMessage(role="system", content="Be <kind> & 'brief'."), ChatMessage(role="user", content="Hello, wörld!")]


def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>"}, "a test")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ bos_token }}[{{ m['role'] }}] {{ m.content | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
        "{% for m in messages %}\n    {% if m.role == 'system' %}\n{% continue %}\n{% endif %}\n"
        "{{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% set ns = namespace(last='') %}{% for m in messages %}{% set ns.last = m.content[::-1] %}{% endfor %}"
        "{{ ns.last }}",
        "{{ strftime_now('%Y') }}{% if tools is defined and tools %}T{% else %}none{% endif %}",
    ],
)  # fmt: skip
def test_rendering_equals_transformers(source: str, tiny_model: Path) -> None:
    oracle = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    conversation = [message.model_dump(exclude_unset=True) for message in HELLO]
    expected = oracle.apply_chat_template(
        conversation, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    assert compiled(source).render(HELLO) == expected


def test_arguments_that_are_no_json_are_refused() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{"}}
    message = ChatMessage.model_validate({"role": "assistant", "tool_calls": [call]})
    with pytest.raises(TemplateFailure, match=r"arguments of f \(x\) are no JSON"):
        compiled("{{ messages }}").render([message])


def test_kwargs_cannot_replace_the_conversation() -> None:
    assert compiled("{{ messages[0].role }}").render(HELLO, kwargs={"messages": [], "tools": 3}) == "system"


def test_prompt_ids_equal_transformers_and_bos_comes_once(tiny_model: Path) -> None:
    oracle = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    text = load_text(tiny_model, chat_template=None, jinja_explicit=None)
    assert text.template is not None
    ids = text.tokenizer.encode_rendered(text.template.render(HELLO))
    conversation = [message.model_dump(exclude_unset=True) for message in HELLO]
    expected = oracle.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert ids == expected
    assert ids.count(text.tokenizer.bos_id) == 1
    assert text.tokenizer.encode_prompt("hello") == oracle("hello").input_ids
    assert text.tokenizer.encode_prompt("<s>hello") == text.tokenizer.encode_prompt("hello")


def test_a_content_of_parts_is_one_text() -> None:
    message = ChatMessage.model_validate(
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    )
    assert compiled("{{ messages[0].content }}").render([message]) == "ab"
    walking = compiled("{% for part in messages[0]['content'] %}{{ part.text }}.{% endfor %}")
    assert walking.render([message]) == "a.b."


def test_the_templates_own_words_are_the_failure() -> None:
    with pytest.raises(TemplateFailure, match="roles must alternate"):
        compiled("{{ raise_exception('roles must alternate') }}").render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content.nothing.there }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
    ],
)
def test_wrong_or_hostile_templates_fail_cleanly(source: str) -> None:
    with pytest.raises(TemplateFailure):
        compiled(source).render(HELLO)


def test_a_template_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_RENDERED", 100_000)
    with pytest.raises(TemplateFailure, match="too much"):
        compiled("{% for a in range(99999) %}{% for b in range(99999) %}xx{% endfor %}{% endfor %}").render(HELLO)


def test_where_the_template_is_found(tmp_path: Path) -> None:
    settings = TokenizerSettings.model_validate(
        {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "config"}]}
    )
    explicit, by_path = tmp_path / "explicit.jinja", tmp_path / "path.jinja"
    explicit.write_text("explicit")
    by_path.write_text("path")

    def found(chat_template: str | None = None, jinja_explicit: Path | None = None) -> str | None:
        template = find_template(tmp_path, settings, chat_template=chat_template, jinja_explicit=jinja_explicit)
        return template and template.render(HELLO)

    assert found() == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert found() == "file"
    assert found("{{ 'inline' }}") == "inline"
    assert found(str(by_path)) == "path"
    assert found(str(by_path), explicit) == "explicit"
    assert find_template(tmp_path / "none", TokenizerSettings(), chat_template=None, jinja_explicit=None) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"chat_template": "{% if %}"}, "--chat-template: the chat template is wrong: line 1"),
        ({"chat_template": "nowhere.jinja"}, "'nowhere.jinja' is neither"),
        ({"jinja_explicit": Path("/nowhere.jinja")}, "/nowhere.jinja cannot be read"),
        ({"chat_template": "{{ a }}" + " " * (1 << 20)}, "longer than"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_bad_configuration(given: dict[str, object], words: str) -> None:
    with pytest.raises(LoadError, match=words.replace("(", r"\(")) as caught:
        find_template(Path(), TokenizerSettings(), **{"chat_template": None, "jinja_explicit": None, **given})
    assert caught.value.failure.reason is FailureReason.BAD_CONFIGURATION


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{}", "tokenizer.json is no valid tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"bos_token": 3}', r"bos_token: .*\(got 3\)"),
        ("generation_config.json", '{"top_p": 7}', r"generation_config.json: top_p: .*\(got 7\)"),
    ],
)
def test_wrong_files_are_named(tiny_model: Path, tmp_path: Path, name: str, content: str | None, words: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / file).write_bytes((tiny_model / file).read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(LoadError, match=words) as caught:
        load_text(tmp_path, chat_template=None, jinja_explicit=None)
    assert caught.value.failure.reason is FailureReason.BAD_CONFIGURATION


def test_a_tokenizer_without_settings_has_no_special_tokens(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    tokenizer = TextTokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.settings.special_tokens) == (None, None, {})


def test_padding_and_truncation_of_a_tokenizer_are_ignored(tiny_model: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny_model / "tokenizer.json").read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    assert len(TextTokenizer.load(tmp_path).encode_rendered("one two three four five")) > 2
