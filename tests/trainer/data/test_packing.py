"""Packing, the token store and the split, mostly by their properties."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.data.messages import MessagesSample, Turn
from finetune_trainer.data.packing import pack
from finetune_trainer.data.split import holdout, with_validation
from finetune_trainer.data.token_store import IGNORED, TokenizedSample, TokenStore
from finetune_trainer.runtime.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

CAPACITY = 64
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=200)


@given(lengths=LENGTHS, seed=st.integers(0, 2**32 - 1))
def test_every_example_stands_in_one_row_and_no_row_is_too_long(
    lengths: list[int], seed: int
) -> None:
    rows = pack(lengths, CAPACITY, seed)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= CAPACITY for row in rows)
    assert rows == pack(lengths, CAPACITY, seed)


@given(lengths=LENGTHS)
def test_no_two_rows_could_be_one(lengths: list[int]) -> None:
    filled = sorted(sum(lengths[i] for i in row) for row in pack(lengths, CAPACITY, 0))
    assert len(filled) < 2 or filled[0] + filled[1] > CAPACITY


@given(lengths=LENGTHS)
def test_best_fit_decreasing_is_what_it_says(lengths: list[int]) -> None:
    room: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(room)) if room[row] >= size]
        if fitting:
            room[min(fitting, key=lambda row: room[row])] -= size
        else:
            room.append(CAPACITY - size)
    packed = [CAPACITY - sum(lengths[i] for i in row) for row in pack(lengths, CAPACITY, 7)]
    assert sorted(packed) == sorted(room)


def test_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens"):
        pack([1, 65], CAPACITY, 0)


def test_hundred_thousand_examples_are_packed_in_seconds() -> None:
    lengths = np.random.default_rng(0).integers(16, 4096, 100_000).tolist()
    started = time.process_time()
    rows = pack(lengths, 4096, 0)
    assert time.process_time() - started < 5
    assert sum(lengths) / (len(rows) * 4096) > 0.99


def example(tokens: list[int], labels: list[int]) -> TokenizedSample:
    return TokenizedSample(np.asarray(tokens, dtype=np.int32), np.asarray(labels, dtype=np.int32))


EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=20),
    min_size=1,
    max_size=20,
)


@given(parts=EXAMPLES, seed=st.integers(0, 99))
@settings(deadline=None)
def test_store_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[tuple[int, bool]]], seed: int
) -> None:
    examples = [
        example([t for t, _ in part], [t if learnt else IGNORED for t, learnt in part])
        for part in parts
    ]
    rows = pack([len(part) for part in parts], 40, seed)
    path = tmp_path_factory.mktemp("store") / "train"
    TokenStore.write(path, examples, rows)
    store = TokenStore.open(path)
    assert (store.rows, store.examples) == (len(rows), len(examples))
    assert store.tokens == sum(len(part) for part in parts)
    for index, members in enumerate(rows):
        row = store.row(index)
        assert row.input_ids.dtype == row.labels.dtype == row.position_ids.dtype == np.int32
        assert row.input_ids.tolist() == [t for i in members for t in examples[i].tokens]
        assert row.labels.tolist() == [t for i in members for t in examples[i].labels]
        assert row.position_ids.tolist() == [p for i in members for p in range(len(parts[i]))]
        assert store.row_lengths[index] == len(row.input_ids)
    with pytest.raises(IndexError):
        store.row(len(rows))


def test_store_does_not_write_over_another(tmp_path: Path) -> None:
    TokenStore.write(tmp_path / "train", [example([1], [1])], [[0]])
    with pytest.raises(FileExistsError):
        TokenStore.write(tmp_path / "train", [example([2], [2])], [[0]])


def rows_of(texts: list[str]) -> list[MessagesSample]:
    return [
        MessagesSample((Turn("user", text), Turn("assistant", "yes")), file="rows.jsonl", line=line)
        for line, text in enumerate(texts, 1)
    ]


TEXTS = st.lists(st.text("abc", max_size=3), min_size=2, max_size=60).filter(
    lambda texts: len(set(texts)) > 1
)


@given(texts=TEXTS, percent=st.integers(1, 99), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_equal_rows_are_never_on_both_sides(texts: list[str], percent: int, seed: int) -> None:
    rows = rows_of(texts)
    split = holdout(rows, f"{percent}%", seed)
    train, held_out = ({row.key for row in side} for side in (split.train, split.held_out))
    assert train
    assert held_out
    assert not train & held_out
    assert sorted(row.line for row in split.train + split.held_out) == list(range(1, len(rows) + 1))
    assert split.duplicates == len(texts) - len(set(texts))


@given(texts=TEXTS, seed=st.integers(0, 9))
@settings(deadline=None)
def test_split_depends_on_content_alone(texts: list[str], seed: int) -> None:
    forward = holdout(rows_of(texts), "30%", seed)
    backward = holdout(rows_of(texts[::-1]), "30%", seed)
    assert {row.key for row in forward.held_out} == {row.key for row in backward.held_out}
    assert [r.key for r in forward.held_out] == [r.key for r in backward.held_out]


def test_share_is_about_what_was_asked_for_and_the_seed_changes_it() -> None:
    rows = rows_of([str(number) for number in range(4000)])
    sides = [holdout(rows, None, seed).held_out for seed in (1, 2)]
    assert all(330 < len(side) < 470 for side in sides)
    assert {row.key for row in sides[0]} != {row.key for row in sides[1]}


def test_rows_that_are_added_leave_the_others_where_they_were() -> None:
    texts = [str(number) for number in range(500)]
    before = {row.key for row in holdout(rows_of(texts), "20%", 3).held_out}
    after = {row.key for row in holdout(rows_of([*texts, "new"]), "20%", 3).held_out}
    assert before <= after


@pytest.mark.parametrize("texts", [["a"], ["a", "a", "a"]])
def test_one_distinct_row_is_too_few(texts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        holdout(rows_of(texts), None, 0)
    assert caught.value.failure.reason == "TooFewRows"


@pytest.mark.parametrize("percent", ["0%", "100%", "-5%", "250%"])
def test_holdout_that_leaves_a_side_empty_is_refused(percent: str) -> None:
    with pytest.raises(UserError) as caught:
        holdout(rows_of(["a", "b"]), percent, 0)
    assert caught.value.failure.reason == "BadHoldout"


def test_training_rows_that_the_validation_data_has_are_left_out() -> None:
    split = with_validation(rows_of(["a", "b", "b", "c"]), rows_of(["c", "d"]), 0)
    assert [row.turns[0].content for row in split.train] == ["a", "b", "b"]
    assert {row.turns[0].content for row in split.held_out} == {"c", "d"}
    assert (split.duplicates, split.removed) == (1, 1)


def test_validation_data_that_has_every_training_row_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        with_validation(rows_of(["a"]), rows_of(["a", "b"]), 0)
    assert caught.value.failure.reason == "TooFewRows"
