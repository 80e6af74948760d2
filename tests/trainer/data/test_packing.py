"""Packing, mostly by its properties."""

from __future__ import annotations

import time

import numpy as np
import pytest
from finetune_trainer.data.packing import pack_samples
from hypothesis import given
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
