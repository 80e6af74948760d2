"""The split into training and held-out samples, mostly by its properties."""

from __future__ import annotations

import pytest
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.split import hold_out_fraction, hold_out_validation
from finetune_trainer.data.turns import Turn
from finetune_trainer.runtime.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st


def samples_of(texts: list[str]) -> list[MessagesSample]:
    return [
        MessagesSample((Turn("user", text), Turn("assistant", "yes")), file="rows.jsonl", line=line)
        for line, text in enumerate(texts, 1)
    ]


TEXTS = st.lists(st.text("abc", max_size=3), min_size=2, max_size=60).filter(
    lambda texts: len(set(texts)) > 1
)


@given(texts=TEXTS, percent=st.integers(1, 99), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_equal_samples_are_never_on_both_sides(texts: list[str], percent: int, seed: int) -> None:
    samples = samples_of(texts)
    split = hold_out_fraction(samples, f"{percent}%", seed)
    train, held_out = ({sample.key for sample in side} for side in (split.train, split.held_out))
    assert train
    assert held_out
    assert not train & held_out
    assert sorted(sample.line for sample in split.train + split.held_out) == list(
        range(1, len(samples) + 1)
    )
    assert split.duplicate_count == len(texts) - len(set(texts))


@given(texts=TEXTS, seed=st.integers(0, 9))
@settings(deadline=None)
def test_the_split_depends_on_content_alone(texts: list[str], seed: int) -> None:
    forward = hold_out_fraction(samples_of(texts), "30%", seed)
    backward = hold_out_fraction(samples_of(texts[::-1]), "30%", seed)
    assert {sample.key for sample in forward.held_out} == {
        sample.key for sample in backward.held_out
    }
    assert [sample.key for sample in forward.held_out] == [
        sample.key for sample in backward.held_out
    ]


def test_the_held_out_fraction_is_as_requested_and_the_seed_changes_it() -> None:
    samples = samples_of([str(number) for number in range(4000)])
    sides = [hold_out_fraction(samples, None, seed).held_out for seed in (1, 2)]
    assert all(330 < len(side) < 470 for side in sides)
    assert {sample.key for sample in sides[0]} != {sample.key for sample in sides[1]}


def test_added_samples_leave_the_others_on_their_side() -> None:
    texts = [str(number) for number in range(500)]
    before = {sample.key for sample in hold_out_fraction(samples_of(texts), "20%", 3).held_out}
    after = {
        sample.key for sample in hold_out_fraction(samples_of([*texts, "new"]), "20%", 3).held_out
    }
    assert before <= after


@pytest.mark.parametrize("texts", [["a"], ["a", "a", "a"]])
def test_one_distinct_sample_is_too_few(texts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        hold_out_fraction(samples_of(texts), None, 0)
    assert caught.value.failure.reason == "TooFewRows"


@pytest.mark.parametrize("percent", ["0%", "100%", "-5%", "250%"])
def test_a_holdout_that_leaves_a_side_empty_is_refused(percent: str) -> None:
    with pytest.raises(UserError) as caught:
        hold_out_fraction(samples_of(["a", "b"]), percent, 0)
    assert caught.value.failure.reason == "BadHoldout"


def test_training_samples_that_the_validation_data_has_are_left_out() -> None:
    split = hold_out_validation(samples_of(["a", "b", "b", "c"]), samples_of(["c", "d"]), 0)
    assert [sample.turns[0].content for sample in split.train] == ["a", "b", "b"]
    assert {sample.turns[0].content for sample in split.held_out} == {"c", "d"}
    assert (split.duplicate_count, split.overlap_count) == (1, 1)


def test_validation_data_that_has_every_training_sample_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        hold_out_validation(samples_of(["a"]), samples_of(["a", "b"]), 0)
    assert caught.value.failure.reason == "TooFewRows"
