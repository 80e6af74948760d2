"""Exact match of an answer and its reference, ignoring case, punctuation and spaces."""

import unicodedata


def normalise_text(text: str) -> str:
    """The text without case, punctuation and extra spaces; compatibility forms are folded."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(c).startswith("P") else c for c in folded)
    return " ".join(kept.split())


def exact_match(answer: str, reference: str) -> float:
    """1 where both are equal after normalisation, else 0."""
    return float(normalise_text(answer) == normalise_text(reference))
