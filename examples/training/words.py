"""Words to ask about: common ones, and an endless supply of made-up ones."""

import random
import string

LONGEST_WORD = 5
"""Letters of the longest word that is ever asked about."""

COMMON_WORDS = """
able apple arm baby ball band bear bed bell berry bird board boat bone book box boy bread bus cake candy car cat chair
child city clock cloud coat cold cook corn cow cup dance day desk dog door dream dress drum duck ear earth egg eye
face farm fire fish flag fog food foot fork fox frog fruit game gate ghost gift girl glass goat gold grape grass green
hair hand happy hat head heart hen hill honey horse house ice jam jelly juice key king kite knee knife lake lamp leaf
lemon light lion lock magic map math melon milk money moon mouse mouth music nail neck nest night nose ocean onion
oven owl paint paper peach piano pig pizza plate puppy queen radio rain ring river road robot roof room rose sand sea
sheep ship shirt shoe sky snake snow soap sock soup spoon star stone storm sugar sun sweet table tea tiger time toast
tooth tower train tree truck uncle water wheel wolf wood world zebra
""".split()  # noqa: SIM905
ONSETS = (*"bcdfghjklmnprstvwz", "bl", "br", "ch", "cr", "dr", "fl", "gr", "pl", "sh", "sl", "st", "th", "tr")
VOWELS = (*"aeiouaeioy", "ee", "oo", "ai", "ou")
CODAS = ("", "", "", *"nrstlmdkpx", "ck", "ll", "ng", "nt", "rd", "ss", "st")


def made_word(rng: random.Random) -> str:
    """A pronounceable word of one or two syllables that most likely does not exist."""
    while True:
        syllables = rng.choice((1, 1, 2))
        word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))
        if len(word) <= LONGEST_WORD:
            return word


def random_letters(rng: random.Random) -> str:
    """Letters in any order: whoever can copy these does not rely on what words look like."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, LONGEST_WORD)))
