"""What `numeric` and `exactMatch` give for answers and references as people write them.

docs/tasks/score-answers.md has the rules.
"""

# ruff: noqa: RUF001 - digits and signs that look alike are what is tested.

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from finetune_trainer.metrics.exact_match import exact_match
from finetune_trainer.metrics.numbers import find_last_number
from finetune_trainer.rewards.reward_functions import score_number
from hypothesis import given
from hypothesis import strategies as st

PAIRS = [
    # answer, reference, numeric, exactMatch
    # Text around a number.
    ("3 + 4 = 7, so it is 1,200.0.", "#### 1200", 1, 0),
    ("#### 1,234", "1234", 1, 1),
    ("So 7 * 2 = <<7*2=14>>14.\n#### 14", "14", 1, 0),
    ("**5**", "5", 1, 1),
    ("5.", "5", 1, 1),
    ("$5", "5", 1, 0),
    ("\\$5", "5", 1, 0),
    ("-$5", "-5", 1, 0),
    ("-$5", "$5", 0, 0),
    ("- 5 apples", "5", 1, 0),
    ("x = - 5", "-5", 1, 0),
    ("in the box - 5", "5", 1, 0),
    ("The answer is 5.", "the answer is 5", 1, 1),
    ("五十 = 50", "50", 1, 0),
    ("答案是42米", "42", 1, 0),
    ("twelve", "12", 0, 0),
    ("none", "none", 0, 1),
    ("No.5", "No. 5", 1, 1),
    # Boxes.
    ("\\boxed{\\frac{3}{4}}", "3/4", 1, 0),
    ("$\\boxed{\\frac{1}{2}}$, as 3 of 6", "1/2", 1, 0),
    ("\\boxed{7} and so \\boxed{8}. Step 9 checks it", "8", 1, 0),
    ("\\fbox{8}, as 3 of 6", "8", 1, 0),
    ("\\fboxed{8}, as 3 of 6", "8", 1, 0),
    ("\\boxed{\\text{none}}, 5", "5", 1, 0),
    # Signs, digits and decimals.
    ("-4", "4", 0, 0),
    ("−5", "-5", 1, 1),
    ("–5", "-5", 1, 1),
    ("－5", "-5", 1, 1),
    ("\N{NON-BREAKING HYPHEN}5", "-5", 1, 1),
    ("\N{SMALL HYPHEN-MINUS}5", "-5", 1, 1),
    ("from 3-4", "4", 1, 0),
    ("5–6", "6", 1, 0),
    ("(x)-4", "4", 1, 0),
    ("5%-10%", "5% - 10%", 1, 1),
    ("10%-20%", "20%", 1, 0),
    ("٣٤", "34", 1, 1),
    ("３４", "34", 1, 1),
    ("۱۲۳", "123", 1, 1),
    ("１２．５", "12.5", 1, 1),
    ("٣٫٥", "3.5", 1, 1),
    ("١٬٢٠٠", "1200", 1, 1),
    ("५०%", "0.5", 1, 0),
    ("0.50", "0.5", 1, 0),
    (".5", "0.5", 1, 0),
    ("p \\approx.5", "0.5", 1, 0),
    ("-\\,.5", "-0.5", 1, 0),
    ("\\text{about}\\ .5", "0.5", 1, 0),
    (".5", "5", 0, 0),
    ("It is ...5", "It is 5", 0, 1),
    ("(1).5", "(1) 5", 0, 1),
    ("3,.5", "3, .5", 1, 1),
    ("-.5", ".5", 0, 0),
    ("3.5", "35", 0, 0),
    ("3.5", "3 5", 0, 0),
    ("0.333", "1/3", 0, 0),
    ("0.1", "0.10000000000000001", 0, 0),
    ("1e-3", "0.001", 1, 0),
    ("1e9999", "1" + 9999 * "0", 1, 0),
    # Separators.
    ("1,234", "1234", 1, 1),
    ("1,234", "1.234", 0, 0),
    ("1.234", "1234", 0, 0),
    ("1,234,567.5", "1234567.5", 1, 1),
    ("1.234.567", "1234567", 1, 0),
    ("1.234.567,5", "1234567.5", 1, 0),
    ("1 234 567", "1234567", 1, 0),
    ("1 234,5", "1234.5", 1, 0),
    ("1\N{NARROW NO-BREAK SPACE}200 km", "1200", 1, 0),
    ("1\N{THIN SPACE}200", "1200", 1, 0),
    ("1'200", "1200", 1, 0),
    ("1’200", "1200", 1, 0),
    ("1_000", "1000", 1, 0),
    ("1{,}200", "1200", 1, 0),
    ("1\\,200", "1200", 1, 0),
    ("12,34,567", "1234567", 1, 0),
    ("3,4", "3.4", 1, 0),
    ("1,5", "2,5", 0, 0),
    ("0,123", "0.123", 1, 0),
    ("0,123", "123", 0, 0),
    ("1,2345", "1.2345", 1, 0),
    ("\\text{3,5} kg", "3.5", 1, 0),
    ("1,234,5", "5", 1, 0),
    # Fractions.
    ("½", "1/2", 1, 1),
    ("1\N{DIVISION SLASH}2", "1/2", 1, 1),
    ("½", "\\frac{1}{2}", 1, 0),
    ("-½", "-0.5", 1, 0),
    ("1/2", "12", 0, 0),
    ("it is -1/2 of it", "-0.5", 1, 0),
    ("1/-2", "-1/2", 1, 0),
    ("1/-2", "1 -2", 0, 0),
    ("1 / 2", "0.5", 1, 0),
    ("1 1/2 cups", "1.5", 1, 0),
    ("3½", "7/2", 1, 0),
    ("1/0", "1/0", 0, 1),
    ("\\frac{-3}{4}", "-3/4", 1, 0),
    ("\\frac{3}{-4}", "-3/4", 1, 0),
    ("-\\frac{-3}{4}", "3/4", 1, 0),
    ("5-\\frac{-3}{4}", "3/4", 1, 0),
    ("is\\frac{-3}{4}", "-3/4", 1, 0),
    (")\\frac{-3}{4}", "-3/4", 1, 0),
    ("\\dfrac{3}{4}", "0.75", 1, 0),
    ("\\tfrac34", "0.75", 1, 0),
    ("-\\dfrac12", "-1/2", 1, 0),
    ("\\frac 1{2}", "1/2", 1, 0),
    ("-1\\frac{1}{2}", "-1.5", 1, 0),
    ("\\frac{3}{4}\\text{ cup}", "3/4", 1, 0),
    # Powers and units.
    ("1.5 \\times 10^{3}", "1500", 1, 0),
    ("1.5 \\cdot 10^3", "1500", 1, 0),
    ("1.5 × 10³", "1500", 1, 0),
    ("1.5 * 10^3", "1500", 1, 0),
    ("1.5 · 10³", "1500", 1, 0),
    ("5 x 10^3", "5000", 1, 0),
    ("10^{-3}", "0.001", 1, 0),
    ("10⁻³", "0.001", 1, 0),
    ("10⁺³", "1000", 1, 0),
    ("1.5×10⁺³", "1500", 1, 0),
    ("2^{10}", "1024", 1, 0),
    ("It is 2^3.", "8", 1, 0),
    ("10²", "100", 1, 0),
    ("10²", "102", 0, 0),
    ("90^\\circ", "90", 1, 0),
    ("90^\\circ\\text{C}", "90", 1, 0),
    ("1^{st}", "1", 1, 0),
    ("5^{\\text{th}}", "5", 1, 0),
    ("5 km²", "5", 1, 0),
    ("5 cm^2", "5", 1, 0),
    ("5 cm^{-1}", "5", 1, 0),
    ("5\\text{ cm}^{2}", "5", 1, 0),
    ("5 \\mathrm{cm}^{2}", "5", 1, 0),
    ("5\\,\\text{m}^2", "5", 1, 0),
    ("5 \\mathrm{kg m }^{-1}", "5", 1, 0),
    ("5 cm^2.", "5", 1, 0),
    ("5 \\mathrm{m/s^2}", "5", 1, 0),
    ("20 m^3", "20", 1, 0),
    ("20m^3", "20", 1, 0),
    # What follows an expression.
    ("2x = 10", "10", 1, 0),
    ("3x4 = 12", "12", 1, 0),
    ("5, the value of x.", "5", 1, 0),
    ("\\sqrt{16} = 4", "4", 1, 0),
    ("With \\pi the answer is 4.", "4", 1, 0),
    ("2024-01-02", "2024-01-02", 0, 1),
    ("3:45", "3 45", 0, 0),
    ("3:45", "3:45", 0, 1),
    ("at 3:45 there are 5", "5", 1, 0),
    # Of several numbers the last one counts.
    ("(3,4)", "(3, 4)", 1, 1),
    ("(-3,-4)", "(-3, -4)", 1, 1),
    ("(3,4)", "(3.4)", 0, 0),
    ("{1,2}", "2", 1, 0),
    ("\\{1,2\\}", "2", 1, 0),
    ("[0,1)", "[0, 1)", 1, 1),
    ("[0,1)", "0.1", 0, 0),
    ("\\left(3,4\\right)", "4", 1, 0),
    ("(x,3,4)", "4", 1, 0),
    ("1,2,3", "1, 2, 3", 1, 1),
    ("3 , 14", "14", 1, 0),
    ("3\\quad14", "14", 1, 0),
    ("\\sqrt{2},3", "3", 1, 0),
    ("(10,20,300)", "300", 1, 0),
    ("(about 1,234)", "1234", 1, 0),
    # Percent.
    ("50 %", "50%", 1, 1),
    ("50\N{NO-BREAK SPACE}%", "50%", 1, 1),
    ("50\\%", "50%", 1, 1),
    ("50\\quad\\%", "50%", 1, 0),
    ("50٪", "50%", 1, 1),
    ("50%", "0.5", 1, 0),
    ("50%", "50", 0, 0),
    ("50 %", "50", 0, 0),
    ("50\\%", "50", 0, 0),
    ("0.5%", "0.5", 0, 0),
    ("%50", "50%", 1, 1),
    ("%50", "50", 0, 0),
    ("oran %12,5'tir", "12.5%", 1, 0),
    ("\\% 50", "0.5", 1, 0),
    ("5 % 3", "3", 1, 0),
    ("7%5", "5", 1, 0),
    ("50 ‰", "5%", 1, 0),
    ("5 ‰", "5‰", 1, 1),
    ("5‰", "5", 0, 0),
    ("2‰-5‰", "5‰", 1, 0),
    # Text without numbers.
    ("ＰＡＲＩＳ", "paris", 0, 1),
    ("«Москва».", "москва", 0, 1),
    ("東京。", "東京", 0, 1),
    ("well-known", "well known", 0, 1),
]
WITHOUT_NUMBER = [
    # Expressions, of which no part is the answer.
    "\\frac{\\pi}{2}",
    "x = 5, so \\boxed{\\frac{\\pi}{2}}",
    "\\frac{x}{2}",
    "\\frac{AB}{2}",
    "\\frac{1}{\\sqrt{2}}",
    "\\frac{1+\\sqrt{5}}{2}",
    "\\frac{1}{1+\\frac{1}{2}}",
    "2\\pi",
    "2π",
    "\\pi/2",
    "\\pi^2",
    "\\pi \\times 2",
    "\\pi*2",
    "2\\pi\\textit{cm}",
    "2\\pi\\,\\mathit{cm}",
    "2\\pi\\quad(2)",
    "2\\pi.5",
    "[5,\\infty)",
    "(2,∞)",
    "\\sin(\\pi)/2",
    "\\sqrt{2}",
    "\\sqrt[3]{8}",
    "\\sqrt{2}\\left(3\\right)",
    "√2",
    "∛8",
    "∜16",
    "\\sqrt{2}+1",
    "\\sqrt{2},5+1",
    "(\\pi,5+1)",
    "\\sqrt{2}+1.5*3",
    "2\\sqrt{3}",
    "x²",
    "x^2",
    "3xy^2",
    "ab^{12}",
    "5 cm^12",
    "5 cm^2.5",
    "2^{n+1}",
    "2^1234",
    "2^0.5",
    "(-2)^2",
    "3 \\over 4",
    "0.\\overline{3}",
    "0.\\bar{3}",
    "0.\\dot{3}",
    "\\pm 5",
    "±5",
    "\\mp 5",
    "\\ln(2)",
    "\\log_2 8",
    "\\log_b 8",
    "\\lg 100",
    "\\exp 2",
    "\\sin 30",
    "\\arctan 1",
    "\\sinh 1",
    "\\cot 45",
    "\\sec 60",
    "\\csc 30",
    "\\binom{5}{2}",
    "{5 \\choose 2}",
    "\\max 4",
    "\\gcd(4)",
    "\\lcm(4)",
    "\\det 4",
    "\\sum_{k} 2",
    "∑ 2",
    "∏ 2",
    "∫ 2",
    "\\lfloor 2.5 \\rfloor",
    "7 \\bmod 4",
    "101_2",
    "x_{12}",
    "3+4i",
    "2x+3",
    "2x_n + 3",
    "a_x + 3",
    "\\boxed{2x}",
    "\\boxed{x - 3}",
    # A division by zero.
    "1/0",
    "\\frac{1}{0}",
    "0^{-1}",
    # Dates, times, ratios and versions.
    "2024-01-02",
    "01-02-2024",
    "on 12/05/2024",
    "3:45",
    "3:4",
    "v1.2.3",
    # Words.
    "one",
]


@pytest.mark.parametrize(("answer", "reference", "numeric", "exact"), PAIRS)
def test_the_scores_of(answer: str, reference: str, numeric: int, exact: int) -> None:
    assert score_number(answer, reference) == numeric
    assert exact_match(answer, reference) == exact
    assert score_number(reference, answer) == numeric
    assert exact_match(reference, answer) == exact


@pytest.mark.parametrize("text", WITHOUT_NUMBER)
def test_there_is_no_number_in(text: str) -> None:
    assert find_last_number(text) is None


@given(st.text())
def test_any_text_has_a_number_or_none(text: str) -> None:
    found = find_last_number(text)
    assert found is None or isinstance(found, Fraction)


@given(st.fractions(), st.text(alphabet="abc. ", max_size=5))
def test_a_fraction_is_found_as_it_is_written(value: Fraction, unit: str) -> None:
    assert find_last_number(f"it is {value.numerator}/{value.denominator} {unit}") == value


@pytest.mark.parametrize(
    "text",
    [
        "1" * 9000,
        "1,000" * 3000,
        "1.234." * 3000,
        " " * 9000,
        "1 " * 9000,
        "\\boxed{" * 3000,
        "9" * 9000 + "^999",
        "9" * 15 + "^999" * 900,
        "1^" * 3000,
        "\\frac{" * 3000,
        "\\pi" + "{1}" * 3000 + "{",
        "\\pi" + "{" * 9000 + "1",
        "(1," * 3000,
        "1," * 3000,
        "1/" * 3000,
        "1:1" * 3000,
        "1 234" * 2000,
    ],
)
def test_no_answer_takes_long(text: str) -> None:
    started = time.process_time()
    find_last_number(text + "!")
    exact_match(text + "!", "1")
    assert time.process_time() - started < 1
