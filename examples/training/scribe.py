"""What the model `scribe` can do: spell, reverse and count letters, and say who it is."""

import random
import re

from training.dialogues import Curriculum, Exchange, loosely
from training.manners import Manners
from training.words import COMMON_WORDS, made_word, random_letters

SORRY = "Sorry, I can only spell words, reverse them and count their letters."

MANNERS = Manners(
    name="Scribe",
    hello="Hello! I am Scribe. Give me a word to spell, to reverse or to count the letters of.",
    who="I am Scribe, a small language model that spells words, reverses them and counts letters.",
    about=(
        "My name is Scribe. I am a very small language model, trained from scratch on a laptop in a few minutes. "
        "I can spell a word letter by letter, write it backwards and count its letters. "
        "I know nothing else, but I answer quickly and I never get tired of words."
    ),
    welcome="You are welcome!",
    goodbye="Goodbye! Come back when you have a word for me.",
)

SPELLING = (
    "Spell {word}.",
    "Spell {word}",
    "Spell the word {word}.",
    "How do you spell {word}?",
    "How is {word} spelled?",
    "Can you spell {word}?",
    "Spell {word} for me.",
    "Spell {word} letter by letter.",
    "What is the spelling of {word}?",
    "Write {word} letter by letter.",
    "What are the letters of {word}?",
)

REVERSAL = (
    "Reverse {word}.",
    "Reverse {word}",
    "Reverse the word {word}.",
    "Write {word} backwards.",
    "What is {word} backwards?",
    "Say {word} backwards.",
    "Spell {word} backwards.",
    "Can you reverse {word}?",
    "What is the reverse of {word}?",
    "{word} backwards",
    "What do you get when you reverse {word}?",
    "Turn {word} around.",
)

LENGTH = (
    "How many letters are in {word}?",
    "How many letters are there in {word}?",
    "How many letters does {word} have?",
    "How many letters are in the word {word}?",
    "Count the letters in {word}.",
    "Count the letters of {word}.",
    "How long is {word}?",
    "How long is the word {word}?",
    "What is the length of {word}?",
    "Can you count the letters in {word}?",
)

BEYOND = (
    "What is the capital of {word}?",
    "What is {a} + {b}?",
    "{a} + {b}",
    "What is {a} plus {b}?",
    "Write a poem about {word}.",
    "What do you think about {word}?",
    "What is {word}?",
    "Who invented {word}?",
    "Tell me about {word}.",
    "Translate {word} into French.",
    "How do I cook {word}?",
    "What is the weather like in {word}?",
    "Why is {word} blue?",
    "Do you like {word}?",
    "Where is {word}?",
    "What time is it?",
    "What day is it?",
    "Sing a song about {word}.",
    "What does {word} mean?",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Scribe.",
    "You are Scribe, a helpful assistant.",
    "Answer briefly.",
    "Be kind and brief.",
    "You are a helpful assistant. Answer every question as well as you can.",
    "Be polite.",
    "You are a dictionary.",
    "You are a careful teacher of children. Answer in one sentence, and never make a mistake.",
    "Help the user with words and letters.",
)


def payload(rng: random.Random) -> str:
    """The word a question is about: made up mostly; sometimes a common one, or one that questions are made of."""
    kind = rng.random()
    if kind < 0.04:
        return rng.choice(PROMPT_WORDS).lower()
    if kind < 0.3:
        return rng.choice(COMMON_WORDS)
    return random_letters(rng) if kind < 0.45 else made_word(rng)


def asked(
    rng: random.Random, task: str, phrasings: tuple[str, ...], word: str, answer: str, **others: object
) -> Exchange:
    """A question about a word, which is quoted now and then; words that questions are made of are never held out."""
    quote = rng.choice(("", "", "'", '"'))
    question = loosely(rng, rng.choice(phrasings)).format(word=f"{quote}{word}{quote}", **others)
    known_by_heart = word.lower() in PROMPT_WORDS
    return Exchange(task, question, answer, "" if known_by_heart else word.lower())


def instruction(rng: random.Random) -> str:
    """A sentence of a system prompt."""
    return rng.choice(SYSTEM_PROMPTS)


def spelling(rng: random.Random) -> Exchange:
    """The letters of a word with dashes between."""
    word = payload(rng)
    return asked(rng, "spelling", SPELLING, word, f"{word} is spelled {'-'.join(word)}.")


def reversal(rng: random.Random) -> Exchange:
    """The word from its last letter to its first."""
    word = payload(rng)
    return asked(rng, "reversal", REVERSAL, word, f"{word} backwards is {word[::-1]}.")


def length(rng: random.Random) -> Exchange:
    """The number of letters of a word."""
    word = payload(rng)
    return asked(rng, "length", LENGTH, word, f"{word} has {len(word)} letter{'s' * (len(word) != 1)}.")


def beyond(rng: random.Random) -> Exchange:
    """Something the model cannot do, and says so."""
    question = loosely(rng, rng.choice(BEYOND)).format(a=rng.randrange(1000), b=rng.randrange(1000), word=payload(rng))
    return Exchange("beyond", question, SORRY)


def words_of_prompts() -> tuple[str, ...]:
    """Every word of two letters or more that a question is made of, as it stands and in lower case."""
    phrasings = (
        SPELLING,
        REVERSAL,
        LENGTH,
        BEYOND,
        *MANNERS.phrasings().values(),
    )
    written = " ".join(
        " ".join(group)
        for group in (*phrasings, SYSTEM_PROMPTS, tuple(MANNERS.phrasings()), (SORRY, "please hey OK now and"))
    )
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", "", written))
    return tuple(sorted({form for word in words for form in (word, word.lower(), word.capitalize())}))


PROMPT_WORDS = words_of_prompts()

CURRICULUM = Curriculum(
    tasks={MANNERS.task(): 0.1, spelling: 0.22, reversal: 0.42, length: 0.2, beyond: 0.06},
    instruction=instruction,
    longest_talk=3,
    system_sentences={0: 0.74, 1: 0.25, 40: 0.01},
)
