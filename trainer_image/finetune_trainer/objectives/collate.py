"""Rows of the token store as tensors of one forward pass.

Position ids restart at every example; the attention layers derive block-diagonal masks from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.data.sampler import deal
from finetune_trainer.data.token_store import IGNORED, PackedSequence
from finetune_trainer.objectives.base import RankBatch


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass."""

    input_ids: torch.Tensor
    """int64 [batch, length]."""
    position_ids: torch.Tensor
    """int64 [batch, length], restarting at every example."""
    selected: torch.Tensor
    """int64 [n]: positions in the flattened batch whose next token is trained on."""
    targets: torch.Tensor
    """int64 [n]: those next tokens."""
    owners: torch.Tensor
    """int64 [n]: index of the row that each target belongs to."""
    lengths: torch.Tensor
    """int64 [batch, length]: length of the example that a position belongs to; 0 for padding."""
    tokens: int
    """Tokens without padding."""


@dataclass(frozen=True)
class RowBatch:
    """A forward pass whose rows carry more than their tokens; an objective adds what."""

    rows: MicroBatch

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.rows.tokens

    @property
    def lengths(self) -> torch.Tensor:
        """Length of the example that a position belongs to."""
        return self.rows.lengths


def shifted_targets(row: PackedSequence) -> np.ndarray:
    """For each position the token to predict there, or -100.

    The label of the next position, but never across the border of two packed examples.
    """
    targets = np.full(len(row.labels), IGNORED, dtype=np.int64)
    targets[:-1] = np.where(row.position_ids[1:] == 0, IGNORED, row.labels[1:])
    return targets


def trained_tokens(row: PackedSequence) -> int:
    """Tokens of a row that enter the loss."""
    return int(np.count_nonzero(shifted_targets(row) != IGNORED))


def example_lengths(row: PackedSequence) -> np.ndarray:
    """For each position of a row the length of its example, which starts at position 0."""
    starts = np.flatnonzero(row.position_ids == 0)
    lengths = np.diff(np.append(starts, len(row.position_ids)))
    return np.repeat(lengths, lengths)


def collate(rows: Sequence[PackedSequence], flatten: bool = False) -> MicroBatch:
    """Rows side by side, padded on the right; or, with `flatten`, one after the other.

    A flattened batch has no padding and suits attention kernels that read sequence borders
    from the position ids. Masks over a flattened batch would grow with its square, so without
    such a kernel rows stay side by side. No rows at all give one token that is not trained on.
    """
    if not rows:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        none = torch.zeros(0, dtype=torch.int64)
        return MicroBatch(zero, zero, none, none, none, zero, 0)
    lengths = [len(row.input_ids) for row in rows]
    if flatten:
        ids = np.concatenate([row.input_ids for row in rows])[None]
        positions = np.concatenate([row.position_ids for row in rows])[None]
        targets = np.concatenate([shifted_targets(row) for row in rows])
        within = np.concatenate([example_lengths(row) for row in rows])[None]
        owners = np.repeat(np.arange(len(rows)), lengths)
    else:
        shape = (len(rows), max(lengths))
        ids = np.zeros(shape, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        within = np.zeros(shape, dtype=np.int64)
        padded = np.full(shape, IGNORED, dtype=np.int64)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[index, :length] = row.input_ids
            positions[index, :length] = row.position_ids
            # Padding goes on counting, so it looks like the tail of the last example: nothing
            # before it can see it, and rows of one example need no mask at all.
            positions[index, length:] = np.arange(shape[1] - length) + row.position_ids[-1] + 1
            within[index, :length] = example_lengths(row)
            padded[index, :length] = shifted_targets(row)
        targets = padded.reshape(-1)
        owners = np.repeat(np.arange(len(rows)), shape[1])
    selected = np.flatnonzero(targets != IGNORED)
    return MicroBatch(
        input_ids=torch.from_numpy(ids.astype(np.int64)),
        position_ids=torch.from_numpy(positions.astype(np.int64)),
        selected=torch.from_numpy(selected),
        targets=torch.from_numpy(targets[selected]),
        owners=torch.from_numpy(owners[selected]),
        lengths=torch.from_numpy(within.astype(np.int64)),
        tokens=sum(lengths),
    )


def share_of(rows: list[PackedSequence], size: int, flatten: bool) -> RankBatch:
    """This rank's part of a global batch of rows, in micro-batches of `size` rows."""
    batches = [collate(members, flatten) for members in deal(rows, size)]
    tokens = sum(len(row.input_ids) for row in rows)
    return RankBatch(batches, max(1, sum(trained_tokens(row) for row in rows)), tokens)
