"""What the model `abacus` can do: add, tell times, and say who it is."""

import random

from training.dialogues import Curriculum, Exchange, loosely
from training.manners import Manners

SORRY = "Sorry, I can only add two numbers below 100 and work out times."

MANNERS = Manners(
    name="Abacus",
    hello="Hello! I am Abacus. Ask me to add two numbers or to work out a time.",
    who="I am Abacus, a small language model that adds numbers and works out times.",
    about=(
        "My name is Abacus. I am a very small language model, trained from scratch on a laptop in a few minutes. "
        "I can add two numbers below one hundred and say what time it is some minutes or hours after another time. "
        "I know nothing else, but I answer quickly and I never get tired."
    ),
    welcome="You are welcome!",
    goodbye="Goodbye! Come back when you have something to add.",
)

ADDITION = (
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "{a}+{b}=",
    "{a} plus {b}",
    "{a} plus {b}?",
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "What's {a} + {b}?",
    "What is {a} plus {b}?",
    "What is {a} and {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "Add {a} + {b}.",
    "Add {b} to {a}.",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}.",
    "Can you add {a} and {b}?",
    "What is the sum of {a} and {b}?",
    "Find the sum of {a} and {b}.",
    "What do you get when you add {a} and {b}?",
    "I have {a} apples and I get {b} more. How many apples do I have?",
    "Tell me what {a} + {b} is.",
)

TIME_AFTER = (
    "What time is it {n} {unit} after {start}?",
    "What is {n} {unit} after {start}?",
    "{n} {unit} after {start}",
    "{n} {unit} after {start}?",
    "It is {start}. What time is it in {n} {unit}?",
    "It is {start} now. What time will it be in {n} {unit}?",
    "{start} + {n} {unit}",
    "What time will it be {n} {unit} after {start}?",
    "Add {n} {unit} to {start}.",
    "What is {start} plus {n} {unit}?",
    "A train leaves at {start} and takes {n} {unit}. When does it arrive?",
    "I start at {start} and work for {n} {unit}. When am I done?",
)

BEYOND = (
    "What is the capital of {thing}?",
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} * {b}",
    "What is {a} times {b}?",
    "What is {a} minus {b}?",
    "Write a poem about {thing}.",
    "What do you think about {thing}?",
    "What is {thing}?",
    "Who invented {thing}?",
    "Tell me about {thing}.",
    "Translate {thing} into French.",
    "How do I cook {thing}?",
    "What is the weather like in {thing}?",
    "What is {a} divided by {b}?",
    "{a} / {b}",
    "{long} + {b}",
    "What is {long} + {b}?",
    "What is {a} + {long}?",
    "Why is {thing} blue?",
    "Spell {thing}.",
    "Do you like {thing}?",
    "Where is {thing}?",
    "What time is it?",
    "What day is it?",
    "Sing a song about {thing}.",
)

THINGS = (
    "France",
    "Spain",
    "the moon",
    "the sea",
    "love",
    "a dog",
    "a cat",
    "the sky",
    "music",
    "bread",
    "the telephone",
    "physics",
    "Rome",
    "London",
    "gravity",
    "history",
    "the internet",
    "chess",
    "rice",
    "soup",
    "a computer",
    "Python",
    "money",
    "happiness",
    "snow",
    "water",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Abacus.",
    "You are Abacus, a helpful assistant.",
    "Answer briefly.",
    "Be kind and brief.",
    "You are a helpful assistant. Answer every question as well as you can.",
    "Be polite.",
    "You are a calculator.",
    "You are a careful teacher of children. Answer in one sentence, and never make a mistake.",
    "Help the user with numbers and times.",
    "The user likes {thing}.",
    "Today we talk about {thing}.",
    "It is day {n} of the year.",
)


def instruction(rng: random.Random) -> str:
    """A sentence of a system prompt, some with things and numbers in them that must not matter."""
    return rng.choice(SYSTEM_PROMPTS).format(thing=rng.choice(THINGS), n=rng.randrange(1, 366))


def addition(rng: random.Random) -> Exchange:
    """The sum of two numbers from 0 to 99."""
    a, b = (rng.randrange(10 ** rng.choice((1, 2, 2))) for _ in range(2))
    question = loosely(rng, rng.choice(ADDITION)).format(a=a, b=b)
    return Exchange("addition", question, f"{a} + {b} = {in_steps(a, b)}.", f"{min(a, b)}+{max(a, b)}")


def in_steps(a: int, b: int) -> str:
    """The sum of two numbers below 100, by way of tens and units where they carry: 25 + 17 is 30 + 12 = 42."""
    tens, units = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{tens} + {units} = {a + b}" if tens and units >= 10 else f"{a + b}"


def time_after(rng: random.Random) -> Exchange:
    """The time on a 24-hour clock some minutes (1 to 59) or hours (1 to 12) after another."""
    step = rng.choice((1, 5))
    hour, minute = rng.randrange(24), rng.randrange(0, 60, step)
    unit, n = ("hour", rng.randint(1, 12)) if rng.random() < 0.25 else ("minute", rng.randrange(step, 60, step))
    units = unit if n == 1 else unit + "s"
    start = f"{hour}:{minute:02}"
    question = loosely(rng, rng.choice(TIME_AFTER)).format(n=n, unit=units, start=start)
    end = hours_later(hour, minute, n) if unit == "hour" else minutes_later(hour, minute, n)
    return Exchange("time", question, f"{start} + {n} {units} = {end}.", f"{start}+{n}{unit}")


def hours_later(hour: int, minute: int, hours: int) -> str:
    """The time after that many hours, by way of the sum where it is past midnight: 26:15 = 2:15."""
    return " = ".join(dict.fromkeys((f"{hour + hours}:{minute:02}", f"{(hour + hours) % 24}:{minute:02}")))


def minutes_later(hour: int, minute: int, minutes: int) -> str:
    """The time after that many minutes, by way of the sum where it is past the full hour: 10:75 = 11:15."""
    *steps, total = in_steps(minute, minutes).split(" = ")
    steps = [f"{hour}:{step}" for step in (*steps, f"{total:0>2}")]
    past = minute + minutes >= 60
    return " = ".join([*steps, f"{(hour + 1) % 24}:{(minute + minutes) % 60:02}"] if past else steps)


def beyond(rng: random.Random) -> Exchange:
    """Something the model cannot do, and says so."""
    question = loosely(rng, rng.choice(BEYOND)).format(
        a=rng.randrange(100), b=rng.randrange(100), long=rng.randrange(100, 10**5), thing=rng.choice(THINGS)
    )
    return Exchange("beyond", question, SORRY)


CURRICULUM = Curriculum(
    tasks={MANNERS.task(): 0.12, addition: 0.4, time_after: 0.42, beyond: 0.06},
    instruction=instruction,
    longest_talk=6,
    system_sentences={0: 0.5, 1: 0.3, 2: 0.1, 8: 0.08, 40: 0.02},
)
