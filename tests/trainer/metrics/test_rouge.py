"""ROUGE-L: the bit-parallel recurrence agrees with the textbook's table."""

from __future__ import annotations

import pytest
from finetune_trainer.metrics.rouge import longest_common_subsequence, rouge_l
from hypothesis import given
from hypothesis import strategies as st

SENTENCES = st.lists(st.sampled_from("abcd"), max_size=90)


def table(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for a in left:
        above = row
        row = [0]
        for j, b in enumerate(right):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
    return row[-1]


@given(SENTENCES, SENTENCES)
def test_it_is_the_longest_common_subsequence(left: list[str], right: list[str]) -> None:
    assert longest_common_subsequence(left, right) == table(left, right)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("The  GUNMAN!", "the gunman", 1.0),
        ("über naïve", "Über Naïve", 1.0),
        ("", "something", 0.0),
        ("something", "", 0.0),
    ],
)
def test_known_scores(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)
