"""`POST /tokenize` and `POST /detokenize`."""

import asyncio

from fastapi import APIRouter, Request

from multimodel_api.tokens import Detokenization, DetokenizeRequest, Tokenization, TokenizeRequest
from multimodel_server.routes.openapi import answers, takes
from multimodel_server.routes.prompts import known_tokens, rendered_chat
from multimodel_server.routes.requests import Service, parse_body
from multimodel_server.service import LoadedModel

router = APIRouter()


@router.post("/tokenize", openapi_extra=takes(TokenizeRequest), responses=answers(Tokenization))
async def tokenize(request: Request, service: Service) -> Tokenization:
    """Return the token ids of a prompt or a conversation."""
    model = service.loaded()
    body = await parse_body(request, TokenizeRequest)
    service.require_model(body.model)
    return await asyncio.to_thread(_tokenized, model, body)


@router.post("/detokenize", openapi_extra=takes(DetokenizeRequest), responses=answers(Detokenization))
async def detokenize(request: Request, service: Service) -> Detokenization:
    """Return the text of token ids."""
    model = service.loaded()
    body = await parse_body(request, DetokenizeRequest)
    service.require_model(body.model)
    tokens = known_tokens(model.text.tokenizer, body.tokens, "tokens")
    return Detokenization(prompt=await asyncio.to_thread(model.text.tokenizer.decode, tokens))


def _tokenized(model: LoadedModel, body: TokenizeRequest) -> Tokenization:
    tokenizer, special = model.text.tokenizer, body.add_special_tokens
    if body.messages is None:
        text, special = body.prompt or "", special is not False
    else:
        text = rendered_chat(
            model.text,
            body.messages,
            body.tools,
            body.chat_template_kwargs,
            "messages",
            add_generation_prompt=body.add_generation_prompt,
        )
    tokens = tokenizer.encode_prompt(text) if special else tokenizer.encode_rendered(text)
    names = [tokenizer.name_of(token) for token in tokens] if body.return_token_strs else None
    return Tokenization(
        count=len(tokens), max_model_len=model.supervisor.max_request_tokens, tokens=tokens, token_strs=names
    )
