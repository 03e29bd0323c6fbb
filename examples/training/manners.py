"""How people greet a chat model, thank it and ask who it is: the same for both models, known by heart."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from training.dialogues import Exchange, loosely

GREETINGS = (
    "Hello",
    "Hello!",
    "Hi",
    "Hi!",
    "Hey",
    "Hey!",
    "Hello there",
    "Hello there!",
    "Hi there!",
    "Hi {name}!",
    "Hello, {name}!",
    "Good morning",
    "Good morning!",
    "Good evening!",
    "Good day!",
    "How are you?",
    "Hi, how are you?",
    "Hello, how are you?",
)
WHO = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "What's your name?",
    "What can you do?",
    "Which model are you?",
    "Hi, who are you?",
    "Hello! Who are you?",
    "Say who you are.",
    "What do you do?",
    "How can you help me?",
    "Can you help me?",
    "Help",
    "Introduce yourself.",
)
ABOUT = (
    "Tell me about yourself.",
    "Tell me more about yourself.",
    "Tell me a story.",
    "Tell me a story about yourself.",
    "Describe yourself.",
    "Tell me everything about you.",
    "Can you tell me about yourself?",
)
THANKS = ("Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much!", "Many thanks!", "Great, thanks!")
FAREWELLS = ("Bye", "Bye!", "Goodbye", "Goodbye!", "Good night!", "See you later!", "See you!")


@dataclass(frozen=True)
class Manners:
    """What a model replies to talk that is not about its work."""

    name: str
    hello: str
    who: str
    about: str
    welcome: str
    goodbye: str

    def phrasings(self) -> dict[str, tuple[str, ...]]:
        """The questions, by the reply they get."""
        return {
            self.hello: tuple(greeting.format(name=self.name) for greeting in GREETINGS),
            self.who: WHO,
            self.about: ABOUT,
            self.welcome: THANKS,
            self.goodbye: FAREWELLS,
        }

    def task(self) -> Callable[[random.Random], Exchange]:
        """The task of replying politely."""
        phrasings = self.phrasings()

        def manners(rng: random.Random) -> Exchange:
            reply = rng.choice(list(phrasings))
            return Exchange("manners", loosely(rng, rng.choice(phrasings[reply])), reply)

        return manners
