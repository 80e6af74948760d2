"""Temperature sampling, by its formula and its properties."""

from __future__ import annotations

from collections import Counter

import pytest
from finetune_trainer.data.mixture import allocate_epoch, draw_epoch
from finetune_trainer.runtime.errors import UserError
from hypothesis import given
from hypothesis import strategies as st

SOURCES = st.lists(st.tuples(st.integers(1, 500), st.floats(0.5, 2)), min_size=1, max_size=6)


def test_the_epoch_is_divided_by_the_formula() -> None:
    # 900^(1/2) = 30 and 100^(1/2) = 10: three quarters and one quarter of 1000.
    assert allocate_epoch([900, 100], [1, 1], 2) == [750, 250]
    assert allocate_epoch([900, 100], [1, 3], 2) == [500, 500]
    assert allocate_epoch([900, 100], [1, 1], 1) == [900, 100]
    assert allocate_epoch([10, 10, 10], [1, 1, 1], 100) == [10, 10, 10]


@given(sources=SOURCES, temperature=st.floats(1, 100))
def test_parts_sum_to_an_epoch_and_are_next_to_the_exact_ones(
    sources: list[tuple[int, float]], temperature: float
) -> None:
    counts, weights = [count for count, _ in sources], [weight for _, weight in sources]
    raw = [weight * count ** (1 / temperature) for count, weight in sources]
    exact = [sum(counts) * each / sum(raw) for each in raw]
    if min(exact) < 1:
        return
    allocated = allocate_epoch(counts, weights, temperature)
    assert sum(allocated) == sum(counts)
    assert all(abs(a - b) < 1 + 1e-6 for a, b in zip(allocated, exact, strict=True))


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_at_temperature_one_every_sample_is_taken_once(counts: list[int], seed: int) -> None:
    sources = [index for index, count in enumerate(counts) for _ in range(count)]
    taken, _ = draw_epoch(sources, [1.0] * len(counts), 1.0, seed)
    assert taken == list(range(len(sources)))


def test_samples_of_a_small_source_are_repeated_evenly_and_of_a_large_one_left_out() -> None:
    sources = [0] * 90 + [1] * 10
    taken, mixture = draw_epoch(sources, [1, 1], 2.0, 7)
    assert [(each.samples, each.samples_per_epoch) for each in mixture] == [(90, 75), (10, 25)]
    times = Counter(taken)
    assert {times[index] for index in range(90)} == {0, 1}
    assert sorted(times[index] for index in range(90, 100)) == [2] * 5 + [3] * 5
    assert draw_epoch(sources, [1, 1], 2.0, 7)[0] == taken
    assert draw_epoch(sources, [1, 1], 2.0, 8)[0] != taken


def test_a_source_that_would_give_nothing_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        allocate_epoch([1000, 1], [1, 0.01], 1)
    assert caught.value.failure.reason == "SourceWithoutShare"
    assert "dataset.train[1]" in caught.value.failure.message


def test_a_source_without_samples_to_learn_from_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.train\[1\]"):
        draw_epoch([0, 0, 2], [1, 1, 1], 1, 0)
