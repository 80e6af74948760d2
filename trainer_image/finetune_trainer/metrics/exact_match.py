"""Exact match: does an answer say what the reference says, but for its dress?"""

import unicodedata


def normalised(text: str) -> str:
    """Without case, punctuation and extra spaces; Unicode compatibility forms folded."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(c).startswith("P") else c for c in folded)
    return " ".join(kept.split())


def exact_match(answer: str, reference: str) -> float:
    """1 where both are equal after normalisation, else 0."""
    return float(normalised(answer) == normalised(reference))
