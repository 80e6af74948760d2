"""The token store: tokenized samples and sequences as plain numpy files.

The prepare stage writes it and training reads it:

- tokens.npy    int32 [total tokens]
- labels.npy    int32 [total tokens]; labels[i] is the token itself, not the next one, because the
  loss shifts; -100 (IGNORED) is not learnt
- offsets.npy   int64 [samples + 1], where each tokenized sample begins in both
- row_offsets.npy   int64 [sequences + 1]
- row_examples.npy  int32; sequence i packs the tokenized samples
  row_examples[row_offsets[i]:row_offsets[i + 1]]

The files are mapped, not read, so any number of processes on a node share one copy.
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
"""Next to a store of unpaired preferences: bool [sequences]."""
_FILES = ("tokens", "labels", "offsets", "row_offsets", "row_examples")

Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class TokenizedSample:
    """Tokens with a label each."""

    tokens: Sequence[int] | Int32
    labels: Sequence[int] | Int32
    """As long as tokens; IGNORED where nothing is learnt."""


@dataclass(frozen=True)
class PackedSequence:
    """One training sequence; all arrays are int32 [n]."""

    input_ids: Int32
    labels: Int32
    position_ids: Int32
    """Restarts from 0 at each tokenized sample."""

    @property
    def sample_count(self) -> int:
        return int(np.count_nonzero(self.position_ids == 0))


class TokenStore:
    """Tokenized samples, and the sequences that they are packed into."""

    def __init__(
        self, tokens: Int32, labels: Int32, offsets: Int64, row_offsets: Int64, row_examples: Int32
    ) -> None:
        self._tokens = tokens
        self._labels = labels
        self._sample_offsets = offsets
        self._sequence_offsets = row_offsets
        self._members = row_examples

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Map the store at `path`."""
        return cls(*(np.load(path / f"{name}.npy", mmap_mode="r") for name in _FILES))

    @classmethod
    def write(
        cls, path: Path, samples: Iterable[TokenizedSample], sequences: Sequence[Sequence[int]]
    ) -> TokenStore:
        """Write samples and sequences (lists of sample indices) to the new folder `path`."""
        listed = list(samples)
        arrays = {
            "tokens": _concatenate([sample.tokens for sample in listed]),
            "labels": _concatenate([sample.labels for sample in listed]),
            "offsets": _offsets([len(sample.tokens) for sample in listed]),
            "row_offsets": _offsets([len(members) for members in sequences]),
            "row_examples": _concatenate(list(sequences)),
        }
        path.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
        return cls.open(path)

    @property
    def sequence_count(self) -> int:
        return len(self._sequence_offsets) - 1

    @property
    def sample_count(self) -> int:
        """Tokenized samples; one that several sequences hold counts once."""
        return len(self._sample_offsets) - 1

    @property
    def token_count(self) -> int:
        """Tokens of all tokenized samples; one that several sequences hold counts once."""
        return int(self._sample_offsets[-1])

    @property
    def sequence_lengths(self) -> Int64:
        """Tokens of each sequence, int64 [sequences]."""
        ends = np.concatenate([[0], np.cumsum(np.diff(self._sample_offsets)[self._members])])
        return np.asarray(np.diff(ends[self._sequence_offsets]), dtype=np.int64)

    def sequence(self, index: int) -> PackedSequence:
        """The sequence with this number, counted from 0."""
        if not 0 <= index < self.sequence_count:
            raise IndexError(f"sequence {index} of {self.sequence_count}")
        members = self._members[self._sequence_offsets[index] : self._sequence_offsets[index + 1]]
        offsets = self._sample_offsets
        spans = [slice(offsets[i], offsets[i + 1]) for i in members.tolist()]
        lengths = [int(span.stop - span.start) for span in spans]
        return PackedSequence(
            input_ids=np.concatenate([self._tokens[span] for span in spans]),
            labels=np.concatenate([self._labels[span] for span in spans]),
            position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        )


def _concatenate(parts: Sequence[Sequence[int] | Int32]) -> Int32:
    arrays = [np.asarray(part, dtype=np.int32) for part in parts]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)


def _offsets(lengths: Sequence[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
