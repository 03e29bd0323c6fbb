"""`chat`: a conversation in the terminal."""

import asyncio
import readline  # noqa: F401  (gives input() line editing and history)
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer

from multimodel.cli.options import ApiKey, Url, examples
from multimodel.cli.reporting import reported_errors
from multimodel.client import DEFAULT_URL, AsyncClient, Client
from multimodel.display import printable
from multimodel_api import names
from multimodel_api.chat import ChatMessage

CHAT_EXAMPLES = examples(
    "multimodel chat",
    'multimodel chat --model math "What is 17 + 25?"',
    "multimodel chat < question.txt",
)
HELP = "/model [ID] shows or changes the model · /clear forgets the conversation · /exit ends it"


class Conversation:
    """The messages so far, and the model that answers them; None is the default model."""

    def __init__(self, url: str, api_key: str | None, model: str | None) -> None:
        self.model = model
        self._url = url
        self._api_key = api_key
        self._messages: list[ChatMessage] = []

    async def print_answer(self, text: str) -> None:
        """Print the answer to the next message as it comes; a turn that fails or is stopped is forgotten."""
        question = ChatMessage(role="user", content=text)
        pieces: list[str] = []
        async with AsyncClient(self._url, self._api_key) as client:
            async for chunk in client.stream_chat([*self._messages, question], self.model):
                piece = "".join(choice.delta.content or "" for choice in chunk.choices)
                print(printable(piece), end="", flush=True)
                pieces.append(piece)
        print()
        self._messages += [question, ChatMessage(role="assistant", content="".join(pieces))]

    def choose(self, model: str) -> None:
        """Let another model answer from now on, if the endpoint has it."""
        with Client(self._url, self._api_key) as client:
            self.model = client.model(model).id

    def clear(self) -> None:
        """Forget all messages."""
        self._messages.clear()


@reported_errors()
def chat(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Answer this alone, and end.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Alias or model id; else the default.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Talk to a model; a PROMPT, or text piped in, is answered alone."""
    conversation = Conversation(url, api_key, model)
    if prompt is None and sys.stdin.isatty():
        conversation.choose(model or names.DEFAULT_MODEL_ID)  # what is not there is said before the first question
        _converse(conversation)
    else:
        asyncio.run(conversation.print_answer(_question(prompt)))


def _question(prompt: str | None) -> str:
    text = (sys.stdin.read() if prompt is None else prompt).strip()
    if not text:
        raise typer.BadParameter("is empty; write a question", param_hint="PROMPT")
    return text


def _converse(conversation: Conversation) -> None:
    print(HELP)
    for text in _typed_lines():
        if text == "/exit":
            return
        with suppress(typer.Exit), reported_errors():
            _respond(conversation, text)


def _respond(conversation: Conversation, text: str) -> None:
    """Answer a typed line; Ctrl-C ends a long answer, not the conversation."""
    try:
        if text.startswith("/"):
            print(_command(conversation, *text.split(maxsplit=1)))
        else:
            asyncio.run(conversation.print_answer(text))
    except KeyboardInterrupt:
        print()


def _typed_lines() -> Iterator[str]:
    """Yield what is typed, without empty lines, until Ctrl-D or Ctrl-C."""
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text:
            yield text


def _command(conversation: Conversation, command: str, argument: str = "") -> str:
    """Carry out a `/command` and return what to say about it."""
    match command:
        case "/model":
            if argument:
                conversation.choose(argument)
            return f"model: {conversation.model or names.DEFAULT_MODEL_ID}"
        case "/clear":
            conversation.clear()
            return "conversation forgotten"
        case _:
            return HELP
