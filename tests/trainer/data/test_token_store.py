"""The token store: it returns what was written, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.data.packing import pack_samples
from finetune_trainer.data.token_store import IGNORED, TokenizedSample, TokenStore
from hypothesis import given, settings
from hypothesis import strategies as st


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
