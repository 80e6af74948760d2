"""Computed rewards: pure functions of a completion and its reference, each 0 to 1.

They run inside training for every sampled completion, so none may hang: the search for a user's
pattern has a time limit, and the prepare stage tries the pattern on hostile texts before the job
requests a device. Nothing here needs PyTorch. Patterns are compiled by `regex`, on which
transformers depends: it has Python's own syntax, and a search can time out.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from finetune_api.objective import REFERENCE_REWARDS, RewardFunction

from finetune_trainer.metrics.exact_match import exact_match, normalise_text
from finetune_trainer.metrics.numbers import find_last_number
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.runtime.errors import UserError

log = logging.getLogger("finetune")

PATTERN_SECONDS = 0.25
"""CPU time of one search; a usual pattern needs a thousandth of it for a long completion."""


@dataclass(frozen=True)
class Completion:
    """An answer to a prompt, to be scored."""

    messages: Sequence[dict[str, str]]
    """The prompt."""
    text: str
    has_ended: bool
    """Whether the model ended it, and it was not truncated."""
    reference: str | None = None


ScoreFunction = Callable[[Completion], float]


def make_score_function(function: RewardFunction) -> ScoreFunction:
    """The reward as a Python function. Raises UserError BadPattern."""
    comparisons = {
        "exactMatch": exact_match,
        "contains": contains,
        "numeric": score_number,
        "rougeL": rouge_l,
    }
    if function.type in REFERENCE_REWARDS:
        compare = comparisons[function.type]
        return lambda completion: compare(completion.text, completion.reference or "")
    if function.type == "regex":
        return _make_pattern_search(function.pattern or "")
    if function.type == "json":
        return lambda completion: score_json(completion.text)
    return lambda completion: float(completion.has_ended)


def name_rewards(functions: Sequence[RewardFunction]) -> list[str]:
    """A name for each reward, by type; the second of a type is numbered."""
    names: list[str] = []
    for function in functions:
        before = sum(other.type == function.type for other in functions[: len(names)])
        names.append(f"{function.type}_{before + 1}" if before else function.type)
    return names


def contains(answer: str, reference: str) -> float:
    """1 where the answer contains the reference, ignoring case, punctuation and spaces. A part of a
    number does not count: 15 does not contain 5."""
    expected = normalise_text(reference)
    if not expected:
        return float(reference in answer)
    before = r"(?<![\d./:,-])" if re.match(r"[-.$€£¥₹]?\d", expected, re.ASCII) else ""
    after = r"(?![\d%‰^]|[./:,]\d)" if re.search(r"\d[%‰]?$", expected, re.ASCII) else ""
    pattern = before + re.escape(expected) + after
    return float(re.search(pattern, normalise_text(answer), re.ASCII) is not None)


def score_number(answer: str, reference: str) -> float:
    """1 where the last number of both is the same: 1,200.0 is 1200, 1/2 and 50% are 0.5; 0 where
    one has none."""
    found, expected = find_last_number(answer), find_last_number(reference)
    return float(found is not None and found == expected)


def score_json(answer: str) -> float:
    """1 where the entire answer is JSON (RFC 8259, so without NaN), else 0."""
    try:
        json.loads(answer, parse_constant=_refuse_constant, parse_int=str)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _make_pattern_search(pattern: str) -> ScoreFunction:
    compiled = compile_pattern(pattern)
    has_warned = False

    def score(completion: Completion) -> float:
        nonlocal has_warned
        try:
            return float(compiled.search(completion.text, timeout=PATTERN_SECONDS) is not None)
        except TimeoutError:
            if not has_warned:
                has_warned = True
                log.warning(
                    "A pattern search took too long and counts as no match; further ones are not "
                    "logged",
                    extra={"pattern": pattern, "timeout_seconds": PATTERN_SECONDS},
                )
            return 0.0

    return score


def compile_pattern(pattern: str) -> Any:
    """The pattern, compiled. Raises UserError BadPattern."""
    import regex

    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise bad_pattern(pattern, f"is not a regular expression: {error}") from None


def bad_pattern(pattern: str, why: str) -> UserError:
    """The error for a pattern that cannot be used."""
    return UserError(
        "BadPattern",
        f"The pattern {pattern!r} of grpo.rewards {why}.",
        "Correct it: the syntax is that of Python's regex library; a repetition inside a "
        "repetition, such as (a+)+, takes too long.",
    )


def check_patterns(functions: Sequence[RewardFunction]) -> None:
    """Raise UserError BadPattern where training could not use a pattern."""
    for function in functions:
        if function.type == "regex":
            _try_pattern(function.pattern or "")


def _try_pattern(pattern: str) -> None:
    """Search texts in which a bad pattern backtracks indefinitely."""
    compiled = compile_pattern(pattern)
    letters = dict.fromkeys(c for c in pattern if c.isalnum() or c.isspace())
    for text in [letter * 4096 + "!" for letter in ["a", "0", " ", "\n", "-", *letters]]:
        try:
            compiled.search(text, timeout=PATTERN_SECONDS)
        except TimeoutError:
            raise bad_pattern(pattern, "takes too long on a text of 4096 characters") from None
