"""ROUGE-L: the textbook's table and known scores, in every script."""

# ruff: noqa: RUF001 - letters of other widths are what is tested.

from __future__ import annotations

import pytest
from finetune_trainer.metrics.rouge import rouge_l, words
from hypothesis import given
from hypothesis import strategies as st

SENTENCES = st.lists(st.sampled_from("abcd"), max_size=90)


def longest_common_subsequence(left: list[str], right: list[str]) -> int:
    """The dynamic programme of the textbook."""
    row = [0] * (len(right) + 1)
    for a in left:
        above = row
        row = [0]
        for j, b in enumerate(right):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
    return row[-1]


@given(SENTENCES, SENTENCES)
def test_the_score_is_the_f1_of_the_longest_common_subsequence(
    left: list[str], right: list[str]
) -> None:
    common = longest_common_subsequence(left, right)
    expected = 2 * common / (len(left) + len(right)) if left or right else 0.0
    assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("The  GUNMAN!", "the gunman", 1.0),
        ("über naïve", "Über Naïve", 1.0),
        ("nai\u0308ve", "na\u00efve", 1.0),
        ("", "something", 0.0),
        ("something", "", 0.0),
        ("…", "!", 0.0),
        # Full-width forms and the digits of other scripts.
        ("１２ ｋｍ", "12 km", 1.0),
        ("٤٢ يوما", "42 يوما", 1.0),
        # Scripts that put no space between words.
        ("今天天气很好", "今天天气不好", 10 / 12),
        ("東京は雨です", "東京は晴れです", 10 / 13),
        ("ฉันรักแมว", "ฉันรักหมา", 10 / 14),
        # Words whose vowels are combining marks.
        ("मौसम अच्छा है", "मौसम खराब है", 2 / 3),
        ("الطقس جميل اليوم", "الطقس سيئ اليوم", 2 / 3),
        ("오늘 날씨가 좋다", "오늘 날씨가 나쁘다", 2 / 3),
        ("Сегодня ХОРОШАЯ погода", "сегодня плохая погода", 2 / 3),
    ],
)
def test_known_scores(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)


def test_latin_words_next_to_unspaced_letters_are_not_split() -> None:
    assert words("用GPT模型2次") == ["用", "gpt", "模", "型", "2", "次"]
