"""Log-probabilities in OpenAI's two shapes."""

from collections.abc import Sequence

from multimodel_api.chat import ChatLogprobs, ChatTokenLogprob, TokenLogprob
from multimodel_api.openai import CompletionLogprobs
from multimodel_server.engine.messages import TokenLogprobs
from multimodel_server.text.tokenizer import TextTokenizer


def chat_logprobs(tokenizer: TextTokenizer, tokens: Sequence[TokenLogprobs]) -> ChatLogprobs:
    """Return tokens as a chat completion shows them."""
    content = []
    for token in tokens:
        shown = _shown(tokenizer, token.token_id, token.logprob)
        top = [_shown(tokenizer, token_id, logprob) for token_id, logprob in token.top]
        content.append(ChatTokenLogprob(token=shown.token, logprob=shown.logprob, bytes=shown.bytes, top_logprobs=top))
    return ChatLogprobs(content=content)


def _shown(tokenizer: TextTokenizer, token_id: int, logprob: float) -> TokenLogprob:
    spelled = tokenizer.token_bytes(token_id)
    return TokenLogprob(token=spelled.decode(errors="replace"), logprob=logprob, bytes=list(spelled))


class CompletionLogprobsWriter:
    """Writes one choice's tokens as completions show them, with where each begins in the text."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._offset = 0

    def prompt(self, prompt_ids: list[int], logprobs: list[TokenLogprobs]) -> CompletionLogprobs:
        """Return the echoed prompt's tokens; the first follows nothing, so it has no log-probability."""
        first = CompletionLogprobs(
            tokens=[self._text(prompt_ids[0])],
            token_logprobs=[None],
            top_logprobs=[None],
            text_offset=[self._next_offset(prompt_ids[0])],
        )
        return joined(first, self.tokens(logprobs))

    def tokens(self, logprobs: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """Return more of the tokens."""
        return CompletionLogprobs(
            tokens=[self._text(token.token_id) for token in logprobs],
            token_logprobs=[token.logprob for token in logprobs],
            top_logprobs=[{self._text(token_id): logprob for token_id, logprob in token.top} for token in logprobs],
            text_offset=[self._next_offset(token.token_id) for token in logprobs],
        )

    def _next_offset(self, token_id: int) -> int:
        offset = self._offset
        self._offset += len(self._detokenizer.feed([token_id]))
        return offset

    def _text(self, token_id: int) -> str:
        """Return a token's text, or its bytes where they are no whole characters: so no two tokens look the same."""
        spelled = self._tokenizer.token_bytes(token_id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def joined(one: CompletionLogprobs, other: CompletionLogprobs) -> CompletionLogprobs:
    """Return the tokens of both, one's first."""
    return CompletionLogprobs(
        tokens=one.tokens + other.tokens,
        token_logprobs=one.token_logprobs + other.token_logprobs,
        top_logprobs=one.top_logprobs + other.top_logprobs,
        text_offset=one.text_offset + other.text_offset,
    )
