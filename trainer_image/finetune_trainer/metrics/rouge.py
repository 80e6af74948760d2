"""ROUGE-L: how much of the reference's word order an answer keeps (Lin 2004, section 3.1).

Written here because the libraries that offer it bring a natural-language toolkit along, for
what is one recurrence. Words are runs of letters and digits of any script, without case.
"""

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words that are compared."""
    return WORD.findall(text.casefold())


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004).

    One machine word per 64 words of `left`: Python's integers do the rest.
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(left):
        positions[word] = positions.get(word, 0) | 1 << index
    full = (1 << len(left)) - 1
    row = full
    for word in right:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(left) - row.bit_count()


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence, 0 to 1; 0 where either side has no words."""
    said, wanted = words(answer), words(reference)
    common = longest_common_subsequence(said, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
