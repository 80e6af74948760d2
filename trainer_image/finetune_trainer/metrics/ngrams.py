"""BLEU and chrF of a set of answers, from the counts of matching n-grams of every answer.

Both are of the whole set and not means over answers, and a bootstrap needs the counts of each
answer, and the scores of many resamples at once; see docs/decisions/0009-libraries.md for why these
are not sacreBLEU's. The results are those of sacreBLEU with effective_order, except that words are
found in every script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from finetune_trainer.metrics.rouge import WORD
from finetune_trainer.metrics.statistics import SumStatistic

BLEU_ORDER = 4
CHRF_ORDER, CHRF_BETA = 6, 2


def bleu(answers: Sequence[str], references: Sequence[str]) -> SumStatistic:
    """Corpus BLEU from 0 to 1 (Papineni et al. 2002), with exponential smoothing (Post 2018)."""
    parts = [
        _count(split_tokens(answer), split_tokens(reference), BLEU_ORDER)
        for answer, reference in zip(answers, references, strict=True)
    ]
    return SumStatistic(np.array(parts, dtype=np.float64), _bleu)


def chrf(answers: Sequence[str], references: Sequence[str]) -> SumStatistic:
    """Corpus chrF2 from 0 to 1 (Popović 2015): F-score of n-grams of characters, without white
    space."""
    parts = [
        _count(_characters(answer), _characters(reference), CHRF_ORDER)
        for answer, reference in zip(answers, references, strict=True)
    ]
    return SumStatistic(np.array(parts, dtype=np.float64), _chrf)


@cache
def _token_pattern() -> Any:
    import regex

    return regex.compile(rf"{WORD}|\S")


def split_tokens(text: str) -> list[str]:
    """Words of any script, as ROUGE-L has them, and each punctuation mark; case counts."""
    found: list[str] = _token_pattern().findall(text)
    return found


def _characters(text: str) -> list[str]:
    return list("".join(text.split()))


def _count(answer: list[str], reference: list[str], order: int) -> list[int]:
    """For each n the n-grams that match, those of the answer and those of the reference."""
    counts = []
    for n in range(1, order + 1):
        given, expected = (
            Counter(zip(*(tokens[shift:] for shift in range(n)), strict=False))
            for tokens in (answer, reference)
        )
        counts += [(given & expected).total(), given.total(), expected.total()]
    return counts


def _split(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches, n-grams of answers and n-grams of references, [..., order] each."""
    matches, given, expected = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    return matches, given, expected


def _bleu(sums: np.ndarray) -> np.ndarray:
    matches, given, expected = _split(sums)
    # The n-th order without a match counts as half as much as the one before it.
    missing = matches == 0
    smoothed = np.where(missing, 1 / 2.0 ** np.cumsum(missing, axis=-1), matches)
    has_ngrams = given > 0
    logs = np.log(np.where(has_ngrams, smoothed / np.maximum(1, given), 1.0))
    # Orders for which every answer is too short do not count.
    orders = has_ngrams.sum(axis=-1)
    precision = np.exp(logs.sum(axis=-1) / np.maximum(1, orders))
    lengths = np.maximum(1, given[..., 0])
    brevity = np.exp(np.minimum(0.0, 1 - expected[..., 0] / lengths))
    return np.asarray(np.where(matches[..., 0] > 0, precision * brevity, 0.0))


def _chrf(sums: np.ndarray) -> np.ndarray:
    matches, given, expected = _split(sums)
    counts = (given > 0) & (expected > 0)
    orders = np.maximum(1, counts.sum(axis=-1))
    precision = (counts * matches / np.maximum(1, given)).sum(axis=-1) / orders
    recall = (counts * matches / np.maximum(1, expected)).sum(axis=-1) / orders
    factor = CHRF_BETA**2
    below = factor * precision + recall
    above = (1 + factor) * precision * recall
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))
