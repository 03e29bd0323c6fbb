"""Turns any text into the DNS labels that name models in a MultiModel."""

import re
import unicodedata
from collections.abc import Iterable

MAX_LABEL = 63


def dns_label(text: str) -> str:
    """Return a readable DNS label for `text`; a label that is one already stays as it is."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:MAX_LABEL].rstrip("-") or "model"


def unique_labels(texts: Iterable[str]) -> dict[str, str]:
    """Return a DNS label for each of the different `texts`; those that are labels already keep theirs."""
    wanted = list(texts)
    labels = {text: text for text in wanted if dns_label(text) == text}
    for text in wanted:
        if text not in labels:
            labels[text] = _unused(dns_label(text), taken=set(labels.values()))
    return {text: labels[text] for text in wanted}


def _unused(label: str, *, taken: set[str]) -> str:
    candidate, number = label, 1
    while candidate in taken:
        number += 1
        suffix = f"-{number}"
        candidate = label[: MAX_LABEL - len(suffix)].rstrip("-") + suffix
    return candidate
