"""From a request to a plan for its answers: the prompt's tokens, the room they leave, sampling, and how to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from multimodel_api.chat import ChatCompletionRequest, ChatMessage, Tool
from multimodel_api.errors import invalid_request
from multimodel_api.openai import CompletionRequest, GenerationFields, each_prompt
from multimodel_server.answer import CONTEXT_LENGTH_EXCEEDED, AnswerPlan
from multimodel_server.engine.messages import Sampling
from multimodel_server.service import LoadedModel
from multimodel_server.text import reasoning
from multimodel_server.text.grammar import after_thought
from multimodel_server.text.model_text import ModelText
from multimodel_server.text.reasoning import ReasoningReader
from multimodel_server.text.reply import ReplyReader
from multimodel_server.text.sampling import sampling
from multimodel_server.text.template import TemplateFailure
from multimodel_server.text.tokenizer import TextTokenizer
from multimodel_server.text.tool_calls import ToolCallReader
from multimodel_server.text.tool_formats import ToolFormat, call_grammar, markers, tool_format

MAX_ANSWERS = 2048
"""The most answers to one request."""


@dataclass(frozen=True, slots=True)
class Params:
    """What a route calls the fields that an error may be about."""

    prompt: str = "messages"
    limit: str = "max_tokens"


@dataclass(frozen=True, slots=True)
class _Manners:
    """How a model thinks and calls tools, as far as one request goes."""

    tools: ToolFormat
    reasons: bool
    thinks: bool
    """Whether the prompt has opened the reasoning."""

    @classmethod
    def of(cls, template: str, tokenizer: TextTokenizer, rendered: str) -> "_Manners":
        thinks = rendered.rstrip().endswith(reasoning.BEGIN)
        return cls(tool_format(template, tokenizer), thinks or reasoning.END in template, thinks)

    @property
    def markers(self) -> tuple[str, ...]:
        return (*markers(self.tools), *((reasoning.BEGIN, reasoning.END) if self.reasons else ()))


def chat_plan(model: LoadedModel, body: ChatCompletionRequest, params: Params) -> AnswerPlan:
    """Return how to answer a conversation; raises the 400."""
    text = model.text
    rendered = rendered_chat(text, body.messages, body.offered_tools, body.template_kwargs, params.prompt)
    prompt_ids = text.tokenizer.encode_rendered(rendered)
    if not prompt_ids:
        raise invalid_request("The chat template made an empty prompt of the messages.", param=params.prompt)
    manners = _Manners.of(text.template.source if text.template else "", text.tokenizer, rendered)
    prompt_ids, max_tokens = _fitted(model, body, prompt_ids, body.token_limit, params)

    def reader(name: str) -> ReplyReader:
        names = [tool.function.name for tool in body.offered_tools]
        return ReplyReader(
            body.stop,
            reasoning=ReasoningReader(begun=manners.thinks) if manners.reasons else None,
            tools=ToolCallReader(manners.tools, names, name) if names else None,
        )

    return AnswerPlan(
        prompt_ids,
        _bound(_sampling(model, body, max_tokens, body.logprobs_wanted), body, manners, text.tokenizer),
        reader,
        visible_tokens=text.tokenizer.special_among(manners.markers),
        priority=body.priority,
        cache_salt=body.cache_salt,
    )


def chat_tokens(text: ModelText, body: ChatCompletionRequest, params: Params) -> list[int]:
    """Return the tokens of a conversation; raises the 400."""
    rendered = rendered_chat(text, body.messages, body.offered_tools, body.template_kwargs, params.prompt)
    return text.tokenizer.encode_rendered(rendered)


def completion_plans(model: LoadedModel, body: CompletionRequest) -> list[AnswerPlan]:
    """Return how to continue each of the prompts; raises the 400."""
    params = Params(prompt="prompt")
    prompts = [token_ids(model.text.tokenizer, prompt, "prompt") for prompt in each_prompt(body.prompt)]
    if len(prompts) * body.candidates > MAX_ANSWERS:
        raise invalid_request(
            f"{len(prompts)} prompts with {body.candidates} answers each are more than {MAX_ANSWERS}; send fewer.",
            param="prompt",
        )
    plans = []
    for ids in prompts:
        prompt_ids, max_tokens = _fitted(model, body, ids, body.token_limit, params)
        # The engine always makes a token; the best of several is chosen by their log-probabilities.
        logprobs = body.logprobs if body.candidates == body.n else body.logprobs or 0
        plan = AnswerPlan(
            prompt_ids,
            _sampling(model, body, max(max_tokens, 1), logprobs),
            lambda _: ReplyReader(body.stop),
            priority=body.priority,
            cache_salt=body.cache_salt,
            prompt_logprobs=body.logprobs if body.echo else None,
        )
        plans.append(plan)
    return plans


def rendered_chat(
    text: ModelText,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    kwargs: dict[str, Any],
    param: str,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Return a conversation as the chat template writes it; raises the 400."""
    if text.template is None:
        raise invalid_request(
            "This model has no chat template; use /v1/completions, or set chatTemplate (--chat-template).",
            param=param,
            code="no_chat_template",
        )
    try:
        return text.template.render(messages, tools, kwargs, add_generation_prompt=add_generation_prompt)
    except TemplateFailure as error:
        raise invalid_request(
            f"The chat template refused the messages: {error}", param=param, code="chat_template_error"
        ) from error


def token_ids(tokenizer: TextTokenizer, prompt: str | list[int], param: str) -> list[int]:
    """Return a prompt's token ids; raises the 400 where there are none, or ids that are no tokens."""
    if isinstance(prompt, str):
        ids = tokenizer.encode_prompt(prompt)
        if not ids:
            raise invalid_request("The prompt has no tokens.", param=param)
        return ids
    return known_tokens(tokenizer, prompt, param)


def known_tokens(tokenizer: TextTokenizer, tokens: list[int], param: str) -> list[int]:
    """Return the token ids; raises the 400 for one that is no token of the model."""
    unknown = next((token for token in tokens if token >= tokenizer.vocabulary_size), None)
    if unknown is not None:
        raise invalid_request(
            f"{param}: {unknown} is no token of this model; its tokens are 0 to {tokenizer.vocabulary_size - 1}.",
            param=param,
        )
    return tokens


def _fitted(
    model: LoadedModel, body: GenerationFields, prompt_ids: list[int], asked: int | None, params: Params
) -> tuple[list[int], int]:
    """Return the prompt, shortened if the request allows it, and how many tokens to generate; raises the 400."""
    context = model.supervisor.max_request_tokens
    if body.truncate_sequence:
        prompt_ids = newest(prompt_ids, max(context - max(asked or 1, 1), 1), model.text.tokenizer.bos_id)
    return prompt_ids, token_budget(len(prompt_ids), asked, context, params)


def newest(prompt_ids: list[int], room: int, bos_id: int | None) -> list[int]:
    """Return the last `room` tokens of a prompt, of which the first stays the token that models expect first."""
    if len(prompt_ids) <= room:
        return prompt_ids
    kept = prompt_ids[-room:]
    return [prompt_ids[0], *kept[1:]] if prompt_ids[0] == bos_id else kept


def token_budget(prompt_tokens: int, asked: int | None, context: int, params: Params) -> int:
    """Return how many tokens a request may generate: what it asks for, else what fits; raises the 400."""
    room = context - prompt_tokens
    if room < 1:
        raise invalid_request(
            f"The prompt has {prompt_tokens} tokens, and this model's context holds {context} tokens of prompt and "
            "answer; shorten the prompt, or set truncate_sequence.",
            param=params.prompt,
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    if asked is not None and asked > room:
        raise invalid_request(
            f"{params.limit} is {asked}, but beside the prompt's {prompt_tokens} tokens this model's context of "
            f"{context} tokens has room for {room}; leave {params.limit} out to use what fits.",
            param=params.limit,
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    return room if asked is None else asked


def _sampling(model: LoadedModel, body: GenerationFields, max_tokens: int, logprobs: int | None) -> Sampling:
    text = model.text
    return sampling(
        body,
        text.defaults,
        text.tokenizer,
        max_tokens=max_tokens,
        stop_token_ids=text.stop_token_ids,
        logprobs=logprobs,
    )


def _bound(chosen: Sampling, body: ChatCompletionRequest, manners: _Manners, tokenizer: TextTokenizer) -> Sampling:
    """Return the sampling whose grammar knows of tools that must be called, and of reasoning; raises the 400."""
    tools = body.must_call
    if not tools:
        if chosen.grammar is None or not manners.thinks:
            return chosen
        return msgspec.structs.replace(chosen, grammar=after_thought(chosen.grammar, tokenizer))
    if chosen.grammar is not None:
        raise invalid_request(
            "tool_choice forces a call of a tool, so the answer can follow no other grammar; leave out "
            "response_format and grammar, or set tool_choice to 'auto'.",
            param="tool_choice",
        )
    several = body.tool_choice == "required" and body.parallel_tool_calls
    grammar = call_grammar(manners.tools, tools, tokenizer, several=several, thinks=manners.thinks)
    return msgspec.structs.replace(chosen, grammar=grammar)
