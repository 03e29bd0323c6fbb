"""Grammars of answers that begin with reasoning, in llguidance's dialect of Lark."""

import json

from multimodel_server.engine.messages import Grammar
from multimodel_server.text import reasoning
from multimodel_server.text.tokenizer import TextTokenizer


def after_thought(grammar: Grammar, tokenizer: TextTokenizer) -> Grammar:
    """Return the grammar of an answer whose reasoning the prompt has opened: only what follows it is bound.

    A Lark grammar binds the whole answer, since it can have rules for reasoning of its own.
    """
    match grammar.kind:
        case "lark":
            return grammar
        case "regex":
            slashes_escaped = grammar.text.replace("\\/", "/").replace("/", "\\/")
            answer = f"/{slashes_escaped}/"
        case "json_schema":
            answer = f"%json {grammar.text}"
    return Grammar("lark", "\n".join(["start: thought answer", *thought_rules(tokenizer), f"answer: {answer}"]))


def thought_rules(tokenizer: TextTokenizer) -> list[str]:
    """Return the rule `thought`: reasoning that the prompt has opened, its end, and the gap before the answer."""
    anything, gap = "/(.|\\n)*/", literal("\n\n")
    if tokenizer.added_id(reasoning.END) is not None:  # Then its name is no text that could end the rule.
        return [f"thought: {anything} {terminal(reasoning.END, tokenizer)} {gap}"]
    return [f"thought: reasoning {gap}", f"reasoning[suffix={literal(reasoning.END)}]: {anything}"]


def terminal(marker: str, tokenizer: TextTokenizer) -> str:
    """Return a marker as the token that it is, else as its text: for llguidance most added tokens have no text."""
    token_id = tokenizer.added_id(marker)
    return literal(marker) if token_id is None else f"<[{token_id}]>"


def literal(text: str) -> str:
    """Return the terminal of a text."""
    return json.dumps(text)
