"""The token store: what prepare leaves behind and training reads, as plain numpy files.

tokens.npy int32 [total tokens], labels.npy int32 [total tokens], offsets.npy int64 [examples +
1], row_offsets.npy int64 [rows + 1], row_examples.npy int32 [examples]. Row i packs the examples
row_examples[row_offsets[i]:row_offsets[i + 1]]. labels[i] is the target at position i, not
shifted (the model's loss shifts); -100 is not learnt. Files are mapped, not read: any number of
processes on a node share one copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
DESIRABLE = "desirable.npy"
"""Beside a store of rated answers: bool [rows]."""
_FILES = ("tokens", "labels", "offsets", "row_offsets", "row_examples")

Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class TokenizedSample:
    """One conversation as tokens."""

    tokens: Sequence[int] | Int32
    labels: Sequence[int] | Int32
    """As long as tokens; IGNORED where nothing is learnt."""


@dataclass(frozen=True)
class PackedSequence:
    """One training sequence; all arrays are int32 [n]."""

    input_ids: Int32
    labels: Int32
    position_ids: Int32
    """Starts from 0 again at each example."""

    @property
    def examples(self) -> int:
        """Conversations in the sequence."""
        return int(np.count_nonzero(self.position_ids == 0))


class TokenStore:
    """Examples and the rows that they are packed into."""

    def __init__(
        self, tokens: Int32, labels: Int32, offsets: Int64, row_offsets: Int64, row_examples: Int32
    ) -> None:
        self._tokens = tokens
        self._labels = labels
        self._offsets = offsets
        self._row_offsets = row_offsets
        self._row_examples = row_examples

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Map the store at `path`."""
        return cls(*(np.load(path / f"{name}.npy", mmap_mode="r") for name in _FILES))

    @classmethod
    def write(
        cls, path: Path, examples: Iterable[TokenizedSample], rows: Sequence[Sequence[int]]
    ) -> TokenStore:
        """Write examples and rows (lists of example indices) to the new folder `path`; open it."""
        listed = list(examples)
        lengths = [len(example.tokens) for example in listed]
        arrays = {
            "tokens": _joined([example.tokens for example in listed]),
            "labels": _joined([example.labels for example in listed]),
            "offsets": _offsets(lengths),
            "row_offsets": _offsets([len(row) for row in rows]),
            "row_examples": _joined(list(rows)),
        }
        path.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
        return cls.open(path)

    @property
    def rows(self) -> int:
        """Sequences."""
        return len(self._row_offsets) - 1

    @property
    def examples(self) -> int:
        """Conversations."""
        return len(self._offsets) - 1

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return int(self._offsets[-1])

    @property
    def row_lengths(self) -> Int64:
        """Tokens of each row."""
        ends = np.concatenate([[0], np.cumsum(np.diff(self._offsets)[self._row_examples])])
        return np.asarray(np.diff(ends[self._row_offsets]), dtype=np.int64)

    def row(self, index: int) -> PackedSequence:
        """The sequence with this number, counted from 0."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        members = self._row_examples[self._row_offsets[index] : self._row_offsets[index + 1]]
        spans = [slice(self._offsets[i], self._offsets[i + 1]) for i in members.tolist()]
        lengths = [int(span.stop - span.start) for span in spans]
        return PackedSequence(
            input_ids=np.concatenate([self._tokens[span] for span in spans]),
            labels=np.concatenate([self._labels[span] for span in spans]),
            position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        )


def _joined(parts: Sequence[Sequence[int] | Int32]) -> Int32:
    arrays = [np.asarray(part, dtype=np.int32) for part in parts]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)


def _offsets(lengths: Sequence[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
