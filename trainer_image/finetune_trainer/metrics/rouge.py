"""ROUGE-L: how much of the reference's word order an answer keeps (Lin 2004, section 3.1).

The longest common subsequence is rapidfuzz's; the words are ours, because the usual tokenizers drop
every letter that is not Latin. See docs/decisions/0009-libraries.md. Both libraries are imported
when they are first used, because the stages import this module before they answer on /progress.
"""

import unicodedata
from functools import cache
from typing import Any

from finetune_trainer.metrics.numbers import fold_digits

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no space between words: each letter, with its marks, counts as a word."""
WORD = rf"(?V1)[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]+"


@cache
def _word_pattern() -> Any:
    import regex

    return regex.compile(WORD)


def words(text: str) -> list[str]:
    """Words of any script without case; equivalent spellings, such as full-width ones, and the
    digits of every script are the same word."""
    folded = unicodedata.normalize("NFKC", fold_digits(text)).casefold()
    found: list[str] = _word_pattern().findall(unicodedata.normalize("NFC", folded))
    return found


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1; 0 where either side has no words."""
    from rapidfuzz.distance import LCSseq

    answered, expected = words(answer), words(reference)
    if not answered or not expected:
        return 0.0
    # The harmonic mean of common / len(answered) and common / len(expected).
    common: int = LCSseq.similarity(answered, expected)
    return 2 * common / (len(answered) + len(expected))
