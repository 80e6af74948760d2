"""Packing, the token store and the split, mostly by their properties."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.data.messages import Turn
from finetune_trainer.data.packing import pack_samples
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.split import hold_out_fraction, hold_out_validation
from finetune_trainer.data.token_store import IGNORED, TokenizedSample, TokenStore
from finetune_trainer.runtime.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

CAPACITY = 64
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=200)


@given(lengths=LENGTHS, seed=st.integers(0, 2**32 - 1))
def test_every_sample_is_in_one_sequence_and_no_sequence_is_too_long(
    lengths: list[int], seed: int
) -> None:
    sequences = pack_samples(lengths, CAPACITY, seed)
    assert sorted(index for sequence in sequences for index in sequence) == list(
        range(len(lengths))
    )
    assert all(0 < sum(lengths[index] for index in sequence) <= CAPACITY for sequence in sequences)
    assert sequences == pack_samples(lengths, CAPACITY, seed)


@given(lengths=LENGTHS)
def test_no_two_sequences_could_be_one(lengths: list[int]) -> None:
    filled = sorted(
        sum(lengths[i] for i in sequence) for sequence in pack_samples(lengths, CAPACITY, 0)
    )
    assert len(filled) < 2 or filled[0] + filled[1] > CAPACITY


@given(lengths=LENGTHS)
def test_sequences_are_those_of_best_fit_decreasing(lengths: list[int]) -> None:
    free: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [sequence for sequence in range(len(free)) if free[sequence] >= size]
        if fitting:
            free[min(fitting, key=lambda sequence: free[sequence])] -= size
        else:
            free.append(CAPACITY - size)
    packed = [
        CAPACITY - sum(lengths[i] for i in sequence)
        for sequence in pack_samples(lengths, CAPACITY, 7)
    ]
    assert sorted(packed) == sorted(free)


def test_a_sample_longer_than_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens"):
        pack_samples([1, 65], CAPACITY, 0)


def test_a_hundred_thousand_samples_are_packed_in_seconds() -> None:
    lengths = np.random.default_rng(0).integers(16, 4096, 100_000).tolist()
    started = time.process_time()
    sequences = pack_samples(lengths, 4096, 0)
    assert time.process_time() - started < 5
    assert sum(lengths) / (len(sequences) * 4096) > 0.99


def tokenized(tokens: list[int], labels: list[int]) -> TokenizedSample:
    return TokenizedSample(np.asarray(tokens, dtype=np.int32), np.asarray(labels, dtype=np.int32))


SAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=20),
    min_size=1,
    max_size=20,
)


@given(parts=SAMPLES, seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_store_returns_the_written_sequences(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[tuple[int, bool]]], seed: int
) -> None:
    samples = [
        tokenized([t for t, _ in part], [t if learnt else IGNORED for t, learnt in part])
        for part in parts
    ]
    sequences = pack_samples([len(part) for part in parts], 40, seed)
    path = tmp_path_factory.mktemp("store") / "train"
    TokenStore.write(path, samples, sequences)
    store = TokenStore.open(path)
    assert (store.sequence_count, store.sample_count) == (len(sequences), len(samples))
    assert store.token_count == sum(len(part) for part in parts)
    for index, members in enumerate(sequences):
        sequence = store.sequence(index)
        assert (
            sequence.input_ids.dtype
            == sequence.labels.dtype
            == sequence.position_ids.dtype
            == np.int32
        )
        assert sequence.input_ids.tolist() == [t for i in members for t in samples[i].tokens]
        assert sequence.labels.tolist() == [t for i in members for t in samples[i].labels]
        assert sequence.position_ids.tolist() == [p for i in members for p in range(len(parts[i]))]
        assert store.sequence_lengths[index] == len(sequence.input_ids)
    with pytest.raises(IndexError):
        store.sequence(len(sequences))


def test_the_store_does_not_overwrite_another(tmp_path: Path) -> None:
    TokenStore.write(tmp_path / "train", [tokenized([1], [1])], [[0]])
    with pytest.raises(FileExistsError):
        TokenStore.write(tmp_path / "train", [tokenized([2], [2])], [[0]])


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
