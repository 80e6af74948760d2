"""Computed rewards: pure functions of an answer and its reference, each 0 to 1.

They run inside training for every sampled answer, so none may hang: a user's pattern is searched
with a time limit, and tried on hostile texts by prepare before a device is asked for. Nothing here
needs PyTorch. The engine of patterns is `regex`, on which transformers depends: it is Python's own
syntax and can be stopped.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from finetune_api.finetunejob import RewardFunction

from finetune_trainer.metrics.exact_match import exact_match, normalised
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.runtime.errors import UserError

log = logging.getLogger("finetune")

COMPARING = ("exactMatch", "contains", "numeric", "rougeL")
"""Rewards that need a reference; prepare refuses prompts without one."""
PATTERN_SECONDS = 0.25
"""CPU time of one search: thousands of times what a usual pattern needs for a long answer."""
NUMBER = re.compile(
    r"(?:(?<![\w)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,4}\b)?",
    re.ASCII,
)
"""Commas part thousands; a minus after a word or a bracket is a subtraction."""
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Completion:
    """An answer that is to be judged."""

    messages: Sequence[dict[str, str]]
    """The prompt."""
    text: str
    ended: bool
    """Whether it ended by itself, and was not cut."""
    reference: str | None = None


ScoreFunction = Callable[[Completion], float]


def make_score_function(wanted: RewardFunction) -> ScoreFunction:
    """The reward as a function. Raises UserError BadPattern."""
    compare = {
        "exactMatch": exact_match,
        "contains": contains,
        "numeric": same_number,
        "rougeL": rouge_l,
    }
    if wanted.type in COMPARING:
        score = compare[wanted.type]
        return lambda reply: score(reply.text, reply.reference or "")
    if wanted.type == "regex":
        return _searching(wanted.pattern or "")
    if wanted.type == "json":
        return lambda reply: valid_json(reply.text)
    return lambda reply: float(reply.ended)


def name_rewards(functions: Sequence[RewardFunction]) -> list[str]:
    """A name for each, by type; where a type stands twice the second one is numbered."""
    names: list[str] = []
    for function in functions:
        before = sum(other.type == function.type for other in functions[: len(names)])
        names.append(f"{function.type}_{before + 1}" if before else function.type)
    return names


def contains(answer: str, reference: str) -> float:
    """1 where the reference stands in the answer, but for case, punctuation and spaces."""
    wanted = normalised(reference)
    return float(wanted in normalised(answer)) if wanted else float(reference in answer)


def same_number(answer: str, reference: str) -> float:
    """1 where the last number of both is the same: 1,200.0 is 1200; 0 where one has none."""
    said, wanted = last_number(answer), last_number(reference)
    return float(said is not None and said == wanted)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exact."""
    found = NUMBER.findall(text.replace(MINUS, "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def valid_json(answer: str) -> float:
    """1 where the whole answer is JSON (RFC 8259, so without NaN), else 0."""
    try:
        json.loads(answer, parse_constant=_refuse, parse_int=str)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _searching(pattern: str) -> ScoreFunction:
    compiled = compile_pattern(pattern)
    warned: set[str] = set()

    def judge(reply: Completion) -> float:
        try:
            return float(compiled.search(reply.text, timeout=PATTERN_SECONDS) is not None)
        except TimeoutError:
            if not warned:
                warned.add(pattern)
                log.warning("a search for %r took too long and counts as none", pattern)
            return 0.0

    return judge


def compile_pattern(pattern: str) -> Any:
    """The pattern, compiled. Raises UserError BadPattern."""
    import regex

    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise bad_pattern(pattern, f"is no regular expression: {error}") from None


def bad_pattern(pattern: str, why: str) -> UserError:
    """The error for a pattern that cannot be used."""
    return UserError(
        "BadPattern",
        f"The pattern {pattern!r} of grpo.rewards {why}.",
        "Correct it: the syntax is that of Python's regex library; a repetition inside a "
        "repetition, such as (a+)+, takes too long.",
    )


def check_patterns(functions: Sequence[RewardFunction]) -> None:
    """Tell what training would stumble over. Raises UserError BadPattern."""
    for function in functions:
        if function.type == "regex":
            _try_out(function.pattern or "")


def _try_out(pattern: str) -> None:
    """Search texts in which a bad pattern backtracks without end."""
    compiled = compile_pattern(pattern)
    letters = dict.fromkeys(c for c in pattern if c.isalnum() or c.isspace())
    for text in [letter * 4096 + "!" for letter in ["a", "0", " ", "\n", "-", *letters]]:
        try:
            compiled.search(text, timeout=PATTERN_SECONDS)
        except TimeoutError:
            raise bad_pattern(pattern, "takes too long on a text of 4096 characters") from None
