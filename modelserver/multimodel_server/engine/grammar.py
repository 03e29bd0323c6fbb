"""One answer held to its grammar: which tokens may come next, by llguidance.

To llguidance an answer ends with a special token of our own, `END`, that no model knows: where the grammar allows it,
the request's stop tokens are allowed, whichever they are.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from multimodel_server.engine.messages import Grammar

END = "<|multimodel:end|>"
WHITESPACE = " "
"""What may stand between the parts of a JSON document, once: with more, a lost model fills its answer with blanks."""

_LIMITS = LLParserLimits(step_max_items=20_000, verbose_errors=False)
"""A step's mask takes up to 0.05 s with these, in which every request waits."""
_MESSAGE_LENGTH = 400
_MATCHES_NOTHING = "no text can match it"


class GrammarError(Exception):
    """A grammar that is wrong or beyond the limits, or an answer that does not follow it."""


class GrammarGuide:
    """Follows one answer through its grammar."""

    def __init__(self, matcher: LLMatcher, end: int) -> None:
        self._matcher = matcher
        self._end = end
        self.followed = 0
        """Tokens of the answer that were taken so far."""
        self._allowed, self._may_end = self._next()

    @classmethod
    def start(cls, grammar: Grammar, tokenizer: LLTokenizer) -> "GrammarGuide":
        """Return the guide of an empty answer; raises `GrammarError`. Compiles: at most about a second of work."""
        matcher = LLMatcher(tokenizer, _notation(grammar), log_level=0, limits=_LIMITS)
        return cls(matcher, tokenizer.eos_tokens[0])

    @property
    def is_finished(self) -> bool:
        """Tell whether the answer can only end here."""
        return not self._allowed.any()

    def advance(self, tokens: Sequence[int]) -> None:
        """Take the next tokens of the answer; raises `GrammarError` if they do not belong there."""
        if not tokens:
            return
        if not self._matcher.consume_tokens(list(tokens)):
            raise GrammarError(self._problem())
        self.followed += len(tokens)
        self._allowed, self._may_end = self._next()

    def mask(self, logits: torch.Tensor, stop_token_ids: frozenset[int]) -> None:
        """Make all that may not come next impossible in [vocabulary] logits, in place; raises `GrammarError`."""
        if self.is_finished and not stop_token_ids:
            raise GrammarError("the answer is complete, but the request has no end token to end it with")
        forbidden = torch.ones(len(logits), dtype=torch.bool)
        known = min(len(logits), len(self._allowed))  # either of tokenizer and model may have the more tokens
        forbidden[:known] = torch.from_numpy(~self._allowed[:known])
        if self._may_end:
            forbidden[list(stop_token_ids)] = False
        logits.masked_fill_(forbidden.to(logits.device), -torch.inf)

    def _next(self) -> tuple[NDArray[np.bool_], bool]:
        """Return which tokens may come next, [tokenizer's vocabulary], and whether the answer may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise GrammarError(self._problem())
        allowed = np.unpackbits(bits, bitorder="little").astype(np.bool_)
        may_end, allowed[self._end] = bool(allowed[self._end]), False
        if not self._matcher.is_accepting() and not allowed.any():
            raise GrammarError(_MATCHES_NOTHING)
        return allowed, may_end

    def _problem(self) -> str:
        problem = self._matcher.get_error().removesuffix("<non-verbose/>").strip()
        return _MATCHES_NOTHING if problem.startswith("NoExtension") else problem[:_MESSAGE_LENGTH]


def read_tokenizer(path: Path, vocab_size: int) -> LLTokenizer:
    """Return llguidance's view of a `tokenizer.json`, one or two seconds of work for 150,000 tokens.

    Raises OSError if it cannot be read; the library raises plain exceptions if it is no tokenizer.
    """
    tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    tokenizer.no_truncation()
    tokenizer.add_special_tokens([END])
    end: int = tokenizer.get_vocab()[END]
    return LLTokenizer(tokenizer.to_str(), n_vocab=max(vocab_size, end + 1), eos_token=end)


def _notation(grammar: Grammar) -> str:
    """Return the grammar in llguidance's own notation; raises `GrammarError`."""
    match grammar.kind:
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)
        case "json_schema":
            try:
                return LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_pattern": WHITESPACE})
            except ValueError as error:
                raise GrammarError(str(error)[:_MESSAGE_LENGTH]) from error
