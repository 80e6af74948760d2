"""The value of each computed reward, and that none of them can hang."""

from __future__ import annotations

import json
import time

import pytest
from finetune_api.objective import REFERENCE_REWARDS, RewardFunction
from finetune_trainer.rewards import reward_functions
from finetune_trainer.rewards.reward_functions import Completion
from finetune_trainer.runtime.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def score(kind: str, text: str, reference: str | None = None, **more: str) -> float:
    function = RewardFunction.model_validate({"type": kind, **more})
    return reward_functions.make_score_function(function)(Completion([], text, True, reference))


@pytest.mark.parametrize(
    ("kind", "text", "reference", "value"),
    [
        ("exactMatch", "  The Answer. ", "the answer", 1.0),
        ("exactMatch", "the answer is", "the answer", 0.0),
        ("exactMatch", " * ", "*", 1.0),
        ("exactMatch", "/", "*", 0.0),
        ("exactMatch", "!", "", 0.0),
        ("exactMatch", "", "()", 0.0),
        ("exactMatch", "[ ]", "[]", 1.0),
        ("contains", "I think it is Paris, of course", "paris", 1.0),
        ("contains", "答案是北京。", "北京", 1.0),
        ("contains", "London", "paris", 0.0),
        ("contains", "what?!", "?!", 1.0),
        ("contains", "what", "?!", 0.0),
        ("contains", "15 apples", "5", 0.0),
        ("contains", "2.5 apples", "5", 0.0),
        ("contains", "2.5 apples", "2", 0.0),
        ("contains", "-5 degrees", "5", 0.0),
        ("contains", "5 apples.", "5", 1.0),
        ("contains", "It is 1,200!", "1200", 1.0),
        ("contains", "共有٥个", "5", 1.0),
        ("contains", "It is 5 %.", "5", 0.0),
        ("contains", "It is 5 %.", "5%", 1.0),
        ("contains", "7%5 = 2", "7%", 0.0),
        ("contains", "1\N{DIVISION SLASH}2 cup", "2", 0.0),
        ("contains", "the point (3,4) there", "(3, 4)", 1.0),
        ("contains", "the point (3,4) there", "4", 1.0),
        ("contains", "it weighs 3,4 kg", "4", 0.0),
        ("contains", "10² apples", "10", 0.0),
        ("contains", "a loss of -$5", "$5", 0.0),
        ("contains", "a gain of US$5", "$5", 1.0),
        ("numeric", "about .50", "1/2", 1.0),
        ("numeric", "it is -4", "4", 0.0),
        ("numeric", "none", "none", 0.0),
        ("rougeL", "a b c", "a b c", 1.0),
        ("rougeL", "a x", "a b", 0.5),
        ("json", '{"a": [1, 2.5, null]}', None, 1.0),
        ("json", '{"a": NaN}', None, 0.0),
        ("json", "{'a': 1}", None, 0.0),
        ("json", "[" * 100_000, None, 0.0),
        ("json", "1" * 10_000, None, 1.0),
    ],
)
def test_a_reward_of_a_completion(
    kind: str, text: str, reference: str | None, value: float
) -> None:
    assert score(kind, text, reference) == value


def test_length_rewards_completions_that_ended() -> None:
    length = reward_functions.make_score_function(RewardFunction(type="length"))
    assert length(Completion([], "x", True)) == 1.0
    assert length(Completion([], "x", False)) == 0.0


def test_a_pattern_is_searched_in_the_answer() -> None:
    pattern = r"(?s)^<think>.*</think>\s*\S"
    assert score("regex", "<think>a\nb</think> so", pattern=pattern) == 1.0
    assert score("regex", "so <think>a</think> b", pattern=pattern) == 0.0


def test_a_search_that_takes_too_long_is_stopped_and_counts_as_no_match() -> None:
    started = time.process_time()
    assert score("regex", "x" * 5000, pattern="(x+x+)+y") == 0.0
    assert time.process_time() - started < 20 * reward_functions.PATTERN_SECONDS


@pytest.mark.parametrize("pattern", ["(", "a{3,1}", "(?P<n>a)(?P=m)", "(x+x+)+y", "(.*)*(.*)*z$"])
def test_prepare_refuses_patterns_that_cannot_be_used(pattern: str) -> None:
    with pytest.raises(UserError) as raised:
        reward_functions.check_patterns([RewardFunction(type="regex", pattern=pattern)])
    assert raised.value.failure.reason == "BadPattern"
    assert pattern in raised.value.failure.message


@pytest.mark.parametrize("pattern", [r"\\boxed\{[^}]*\}", r"^(?:yes|no)\b", r"(?i)answer:\s*\d+"])
def test_prepare_accepts_usual_patterns(pattern: str) -> None:
    reward_functions.check_patterns([RewardFunction(type="regex", pattern=pattern)])


def test_rewards_of_one_type_have_different_names() -> None:
    rewards = [
        RewardFunction(type="regex", pattern="a"),
        RewardFunction(type="length"),
        RewardFunction(type="regex", pattern="b"),
    ]
    assert reward_functions.name_rewards(rewards) == ["regex", "length", "regex_2"]


@given(st.text(), st.text(min_size=1))
def test_every_reward_is_between_0_and_1(text: str, reference: str) -> None:
    for kind in (*REFERENCE_REWARDS, "json", "length"):
        assert 0.0 <= score(kind, text, reference) <= 1.0


@given(st.text(min_size=1).filter(str.strip))
def test_the_reference_itself_scores_1(text: str) -> None:
    assert score("exactMatch", text, text) == 1.0
    assert score("contains", f"well: {text}", text) == 1.0


@given(
    st.text(alphabet=st.characters(exclude_categories=["N", "P"])), st.decimals(-(10**12), 10**12)
)
def test_the_last_number_is_found_after_any_words(words: str, number: object) -> None:
    plain = f"{number:f}"
    assert score("numeric", f"{words} = {plain}", plain) == 1.0


@settings(max_examples=50)
@given(JSON)
def test_any_output_of_json_is_json(value: object) -> None:
    assert score("json", json.dumps(value)) == 1.0
