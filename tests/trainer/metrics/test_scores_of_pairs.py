"""What `numeric` and `exactMatch` give for answers and references as people write them.

docs/tasks/score-answers.md has the rules.
"""

# ruff: noqa: RUF001 - digits and signs that look alike are what is tested.

from __future__ import annotations

import time

import pytest
from finetune_trainer.metrics.exact_match import exact_match
from finetune_trainer.metrics.numbers import find_last_number
from finetune_trainer.rewards.reward_functions import contains, score_number

PAIRS = [
    # answer, reference, numeric, exactMatch
    # Marks around a number.
    ("#### 1,234", "1234", 1, 1),
    ("So 7 * 2 = <<7*2=14>>14.\n#### 14", "14", 1, 0),
    ("\\boxed{\\frac{3}{4}}", "3/4", 1, 0),
    ("**5**", "5", 1, 1),
    ("5.", "5", 1, 1),
    ("$5", "5", 1, 0),
    ("\\$5", "5", 1, 0),
    ("-$5", "-5", 1, 0),
    ("-$5", "$5", 0, 0),
    ("5 apples", "5", 1, 0),
    ("90^\\circ", "90", 1, 0),
    ("x = - 5", "-5", 1, 0),
    ("twelve", "12", 0, 0),
    # Signs, digits and decimals.
    ("−5", "-5", 1, 1),
    ("–5", "-5", 1, 1),
    ("5–6", "6", 1, 0),
    ("10%-20%", "20%", 1, 0),
    ("٣٤", "34", 1, 1),
    ("３４", "34", 1, 1),
    ("0.50", "0.5", 1, 0),
    (".5", "0.5", 1, 0),
    ("0.333", "1/3", 0, 0),
    ("1e-3", "0.001", 1, 0),
    # Separators.
    ("1,234", "1234", 1, 1),
    ("1,234", "1.234", 0, 0),
    ("1.234", "1234", 0, 0),
    ("1.234.567", "1234567", 1, 0),
    ("1 234 567", "1234567", 1, 0),
    ("1_000", "1000", 1, 0),
    ("12,34,567", "1234567", 1, 0),
    ("3,4", "3.4", 1, 0),
    ("0,123", "0.123", 1, 0),
    ("0,123", "123", 0, 0),
    ("v1.2.3", "3", 0, 0),
    ("1 234,5", "1234.5", 1, 0),
    ("\\text{3,5} kg", "3.5", 1, 0),
    ("1,234,5", "5", 1, 0),
    # Fractions.
    ("½", "1/2", 1, 1),
    ("3 1/2", "3.5", 1, 0),
    ("3½", "7/2", 1, 0),
    ("-1/2", "-0.5", 1, 0),
    ("1/-2", "-1/2", 1, 0),
    ("1/-2", "1 -2", 0, 0),
    ("1 / 2", "0.5", 1, 0),
    ("1/0", "0", 0, 0),
    ("1/0", "1/0", 0, 1),
    ("\\frac{-3}{4}", "-3/4", 1, 0),
    ("\\frac{3}{-4}", "-3/4", 1, 0),
    ("-\\frac{-3}{4}", "3/4", 1, 0),
    ("5-\\frac{-3}{4}", "3/4", 1, 0),
    ("\\dfrac{3}{4}", "0.75", 1, 0),
    ("\\tfrac34", "0.75", 1, 0),
    ("\\frac12", "1/2", 1, 0),
    ("\\frac 1{2}", "1/2", 1, 0),
    ("-1\\frac{1}{2}", "-1.5", 1, 0),
    ("\\frac{1}{0}", "0", 0, 0),
    ("\\frac{3}{4}\\text{ cup}", "3/4", 1, 0),
    # Powers.
    ("1.5 × 10³", "1500", 1, 0),
    ("5^{\\text{th}}", "5", 1, 0),
    ("10^{-3}", "0.001", 1, 0),
    ("2^{10}", "1024", 1, 0),
    ("10²", "100", 1, 0),
    ("10⁻³", "0.001", 1, 0),
    ("10²", "102", 0, 0),
    ("5 x 10^3", "5000", 1, 0),
    ("5 km²", "5", 1, 0),
    ("5 cm^2", "5", 1, 0),
    ("5\\text{ cm}^{2}", "5", 1, 0),
    ("5 \\mathrm{m/s^2}", "5", 1, 0),
    ("20 m^3", "20", 1, 0),
    ("3xy^2", "3", 0, 0),
    ("\\pi^2", "2", 0, 0),
    ("0^{-1}", "0", 0, 0),
    # Expressions, of which no part is the answer.
    ("\\frac{\\pi}{2}", "2", 0, 0),
    ("x = 5, so \\boxed{\\frac{\\pi}{2}}", "5", 0, 0),
    ("\\frac{x}{2}", "2", 0, 0),
    ("\\frac{1}{\\sqrt{2}}", "2", 0, 0),
    ("\\frac{1+\\sqrt{5}}{2}", "2", 0, 0),
    ("\\frac{1}{1+\\frac{1}{2}}", "1/2", 0, 0),
    ("2\\pi", "2", 0, 0),
    ("2π", "2", 0, 0),
    ("\\pi/2", "2", 0, 0),
    ("\\sqrt{2}", "2", 0, 0),
    ("\\sqrt[3]{8}", "8", 0, 0),
    ("√2", "2", 0, 0),
    ("\\sqrt{2}+1", "1", 0, 0),
    ("2\\sqrt{3}", "2", 0, 0),
    ("x^2", "2", 0, 0),
    ("2^{n+1}", "1", 0, 0),
    ("3 \\over 4", "4", 0, 0),
    ("\\pm 5", "5", 0, 0),
    ("\\log_2 8", "8", 0, 0),
    ("101_2", "2", 0, 0),
    ("0.\\overline{3}", "3", 0, 0),
    ("\\lfloor 2.5 \\rfloor", "2.5", 0, 0),
    ("\\max(3, 4)", "3", 0, 0),
    ("\\infty", "1", 0, 0),
    ("3+4i", "4", 0, 0),
    ("2x+3", "3", 0, 0),
    ("\\boxed{2x}", "2", 0, 0),
    ("\\boxed{x - 3}", "3", 0, 0),
    ("2x = 10", "10", 1, 0),
    ("3x4 = 12", "12", 1, 0),
    ("5, the value of x.", "5", 1, 0),
    ("(-2)^2", "2", 0, 0),
    ("x_{12}", "2", 0, 0),
    ("\\sqrt{16} = 4", "4", 1, 0),
    ("With \\pi, the answer is 4.", "4", 1, 0),
    # Dates, times and ratios are no numbers.
    ("2024-01-02", "2", 0, 0),
    ("2024-01-02", "2024-01-02", 0, 1),
    ("01-02-2024", "2024", 0, 0),
    ("12/05/2024", "2024", 0, 0),
    ("3:45", "45", 0, 0),
    ("3:45", "3:45", 0, 1),
    ("3:4", "4", 0, 0),
    ("at 3:45 there are 5", "5", 1, 0),
    # Of several numbers the last one counts.
    ("(3,4)", "(3, 4)", 1, 1),
    ("(-3,-4)", "(-3, -4)", 1, 1),
    ("(3,4)", "(3.4)", 0, 0),
    ("\\{1,2\\}", "2", 1, 0),
    ("{1,2}", "2", 1, 0),
    ("[0,1)", "[0, 1)", 1, 1),
    ("[0,1)", "0.1", 0, 0),
    ("\\left(3,4\\right)", "4", 1, 0),
    ("(x,3,4)", "4", 1, 0),
    ("1,2,3", "1, 2, 3", 1, 1),
    ("3 , 14", "14", 1, 0),
    ("(10,20,300)", "300", 1, 0),
    ("(about 1,234)", "1234", 1, 0),
    ("from 3-4", "4", 1, 0),
    # Percent.
    ("50 %", "50%", 1, 1),
    ("50\N{NO-BREAK SPACE}%", "50%", 1, 1),
    ("50 %", "50", 0, 0),
    ("50\\%", "50%", 1, 1),
    ("50\\%", "50", 0, 0),
    ("50%", "0.5", 1, 0),
]


@pytest.mark.parametrize(("answer", "reference", "numeric", "exact"), PAIRS)
def test_the_scores_of(answer: str, reference: str, numeric: int, exact: int) -> None:
    assert score_number(answer, reference) == numeric
    assert exact_match(answer, reference) == exact
    assert score_number(reference, answer) == numeric
    assert exact_match(reference, answer) == exact


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("It is 5 %.", "5", 0),
        ("It is 5 %.", "5%", 1),
        ("the point (3,4) there", "(3, 4)", 1),
        ("the point (3,4) there", "4", 1),
        ("it weighs 3,4 kg", "4", 0),
        ("10² apples", "10", 0),
        ("a loss of -$5", "$5", 0),
        ("a gain of US$5", "$5", 1),
    ],
)
def test_an_answer_contains(answer: str, reference: str, value: int) -> None:
    assert contains(answer, reference) == value


@pytest.mark.parametrize(
    "text",
    [
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
    find_last_number(text)
    exact_match(text, "1")
    assert time.process_time() - started < 1
