"""Numbers in answers: fractions, percentages, separators, LaTeX and the digits of other scripts."""

# ruff: noqa: RUF001 - digits and letters that look alike are what is tested.

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from finetune_trainer.metrics.exact_match import exact_match
from finetune_trainer.metrics.numbers import find_last_number
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.rewards.reward_functions import contains, score_number
from hypothesis import given
from hypothesis import strategies as st

HALF = Fraction(1, 2)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1/2", HALF),
        ("it is -1/2 of it", -HALF),
        ("0.5", HALF),
        ("0,5", HALF),
        ("50%", HALF),
        ("50 %", HALF),
        ("50\\%", HALF),
        ("½", HALF),
        ("1½", 3 * HALF),
        ("-½", -HALF),
        ("- 5 apples", Fraction(5)),
        ("1e9999", Fraction(10**9999)),
        ("1 1/2 cups", 3 * HALF),
        ("\\frac{1}{2}", HALF),
        ("-\\dfrac12", -HALF),
        ("1\\frac{1}{2}", 3 * HALF),
        ("$\\boxed{\\frac{1}{2}}$, as 3 of 6", HALF),
        ("\\boxed{7} and so \\boxed{8}. Step 9 checks it", Fraction(8)),
        ("\\boxed{\\text{none}}, 5", Fraction(5)),
        ("1,200", Fraction(1200)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1.234.567,5", Fraction(2469135, 2)),
        ("1'200", Fraction(1200)),
        ("1\u202f200 km", Fraction(1200)),
        ("1{,}200", Fraction(1200)),
        ("1\\,200", Fraction(1200)),
        ("$1,200", Fraction(1200)),
        ("1.5 \\times 10^{3}", Fraction(1500)),
        ("1.5e-1", Fraction(3, 20)),
        ("１２．５", Fraction(25, 2)),
        ("٣٫٥", Fraction(7, 2)),
        ("۱۲۳", Fraction(123)),
        ("١٬٢٠٠", Fraction(1200)),
        ("५०%", HALF),
        ("五十 = 50", Fraction(50)),
        ("答案是42米", Fraction(42)),
        ("5 km²", Fraction(5)),
        ("on 12/05/2024", None),
        ("from 3-4", Fraction(4)),
        ("1/0", None),
        ("one", None),
        ("x²", None),
    ],
)
def test_the_last_number_of(text: str, number: Fraction | None) -> None:
    assert find_last_number(text) == number


@pytest.mark.parametrize(
    ("answer", "reference"), [("1,5", "2,5"), ("0.5%", "0.5"), ("50%", "50"), ("1/3", "0.333")]
)
def test_different_numbers_are_not_equal(answer: str, reference: str) -> None:
    assert score_number(answer, reference) == 0.0


@given(st.text())
def test_any_text_has_a_number_or_none(text: str) -> None:
    found = find_last_number(text)
    assert found is None or isinstance(found, Fraction)


@given(st.fractions(), st.text(alphabet="abc. ", max_size=5))
def test_a_fraction_is_found_as_it_is_written(value: Fraction, unit: str) -> None:
    assert find_last_number(f"it is {value.numerator}/{value.denominator} {unit}") == value


@pytest.mark.parametrize(
    "text",
    ["1" * 9000, "1,000" * 3000, "1.234." * 3000, " " * 9000, "1 " * 9000, "\\boxed{" * 3000],
)
def test_no_answer_takes_long(text: str) -> None:
    started = time.process_time()
    find_last_number(text + "!")
    exact_match(text + "!", "1")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("-4", "4", 0.0),
        ("3.5", "35", 0.0),
        ("3.5", "3 5", 0.0),
        ("50%", "50", 0.0),
        ("1/2", "12", 0.0),
        ("1,200", "1200", 1.0),
        ("The answer is 5.", "the answer is 5", 1.0),
        ("１２", "12", 1.0),
        ("٤٢", "42", 1.0),
        ("ＰＡＲＩＳ", "paris", 1.0),
        ("«Москва».", "москва", 1.0),
        ("東京。", "東京", 1.0),
        ("well-known", "well known", 1.0),
    ],
)
def test_exact_match_of(answer: str, reference: str, value: float) -> None:
    assert exact_match(answer, reference) == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("15 apples", "5", 0.0),
        ("2.5 apples", "5", 0.0),
        ("-5 degrees", "5", 0.0),
        ("5 apples.", "5", 1.0),
        ("It is 1,200!", "1200", 1.0),
        ("共有٥个", "5", 1.0),
    ],
)
def test_an_answer_contains_a_number_as_a_whole(answer: str, reference: str, value: float) -> None:
    assert contains(answer, reference) == value


@pytest.mark.parametrize(("answer", "reference"), [("１２ ｋｍ", "12 km"), ("٤٢ يوما", "42 يوما")])
def test_rouge_folds_full_width_forms_and_digits(answer: str, reference: str) -> None:
    assert rouge_l(answer, reference) == 1.0
