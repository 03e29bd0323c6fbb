"""Questions that training never showed, with the replies that count as right: for the accuracy table and for tests."""

import random

from training import abacus, scribe
from training.dialogues import Curriculum, Dialogue

CURRICULA: dict[str, Curriculum] = {"abacus": abacus.CURRICULUM, "scribe": scribe.CURRICULUM}


def held_out(model_name: str, count: int, seed: int = 0) -> list[Dialogue]:
    """As many dialogues whose last question is unseen: send `prompt()`, expect `expected`.

    The same arguments give the same list, everywhere.
    """
    rng = random.Random(f"{model_name}/{seed}")
    return [CURRICULA[model_name].exam(rng) for _ in range(count)]
