"""Exact match of an answer and its reference, ignoring case, punctuation and spaces.

The punctuation of a number is a part of it: -4 is not 4, 3.5 is not 35, and 50% is not 50.
"""

import re
import unicodedata

from finetune_trainer.metrics.numbers import (
    DECIMAL_COMMA,
    MINUS,
    THOUSANDS,
    fold_digits,
    move_percent_signs,
    separate_lists,
)

IN_NUMBER = re.compile(
    rf"{DECIMAL_COMMA}|(?<=\d)[.:](?=\d)|(?<=\d)/(?=-?\d)"
    rf"|{MINUS}(?=[$€£¥₹]?\.?\d)|(?<![\w)\]}}.%])\.(?=\d)|(?<=\d)[%‰]",
    re.ASCII,
)
"""Punctuation between digits, a sign or a point before the first, and a percent sign."""


def normalise_text(text: str) -> str:
    """The text without case, punctuation and extra spaces; compatibility forms and the digits of
    every script are folded, thousands are not separated, and a percent sign follows its number."""
    folded = unicodedata.normalize("NFKC", fold_digits(text)).casefold()
    folded = separate_lists(move_percent_signs(folded))
    folded = re.sub(r"(?<=\d)\s?\\?([%‰])", r"\1", folded)
    folded = THOUSANDS.sub(lambda match: match[0].replace(",", ""), folded)
    kept = {
        index for match in IN_NUMBER.finditer(folded) for index in range(match.start(), match.end())
    }
    characters = (
        " " if unicodedata.category(c).startswith("P") and index not in kept else c
        for index, c in enumerate(folded)
    )
    return " ".join("".join(characters).split())


def exact_match(answer: str, reference: str) -> float:
    """1 where both are equal after normalisation, else 0; of a reference that is only punctuation
    nothing is removed but spaces."""
    expected = normalise_text(reference)
    if not expected:
        texts = ("".join(unicodedata.normalize("NFKC", t).split()) for t in (answer, reference))
        return float(len(set(texts)) == 1)
    return float(normalise_text(answer) == expected)
