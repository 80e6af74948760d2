"""Packed sequences of the token store as the tensors of one forward pass.

Position ids restart at every sample; the attention layers derive block-diagonal masks from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.data.sampler import split_into_micro_batches
from finetune_trainer.data.token_store import IGNORED, PackedSequence
from finetune_trainer.objectives.base import RankBatch


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one forward pass, [batch, length]; with `flatten` batch is 1.

    Labels are sparse: only the n positions whose next token is trained on have one.
    """

    input_ids: torch.Tensor
    """int64 [batch, length]."""
    position_ids: torch.Tensor
    """int64 [batch, length], restarting at every sample."""
    label_positions: torch.Tensor
    """int64 [n]: positions in the flattened batch whose next token is trained on."""
    labels: torch.Tensor
    """int64 [n]: those next tokens."""
    sequence_index: torch.Tensor
    """int64 [n]: index of the sequence that each label belongs to."""
    sample_lengths: torch.Tensor
    """int64 [batch, length]: length of the sample that a position belongs to; 0 for padding."""
    tokens: int
    """Tokens without padding."""


@dataclass(frozen=True)
class ObjectiveBatch:
    """A micro-batch with more tensors for each sequence; each objective adds its own."""

    micro_batch: MicroBatch

    @property
    def tokens(self) -> int:
        return self.micro_batch.tokens

    @property
    def sample_lengths(self) -> torch.Tensor:
        return self.micro_batch.sample_lengths


def shift_labels(sequence: PackedSequence) -> np.ndarray:
    """int64 [length]: the token to predict at each position, or -100.

    It is the label of the next position, but never across the border of two packed samples.
    """
    shifted = np.full(len(sequence.labels), IGNORED, dtype=np.int64)
    shifted[:-1] = np.where(sequence.position_ids[1:] == 0, IGNORED, sequence.labels[1:])
    return shifted


def count_trained_tokens(sequence: PackedSequence) -> int:
    """Tokens of a sequence that enter the loss."""
    return int(np.count_nonzero(shift_labels(sequence) != IGNORED))


def compute_sample_lengths(sequence: PackedSequence) -> np.ndarray:
    """int64 [length]: for each position the length of its sample, which starts at position 0."""
    starts = np.flatnonzero(sequence.position_ids == 0)
    lengths = np.diff(np.append(starts, len(sequence.position_ids)))
    return np.repeat(lengths, lengths)


def collate(sequences: Sequence[PackedSequence], flatten: bool = False) -> MicroBatch:
    """Sequences as the rows of a batch, padded on the right; with `flatten`, one after the other.

    A flattened batch has no padding and suits attention kernels that read the borders of samples
    from the position ids. Without such a kernel the mask of a flattened batch would grow with the
    square of its length, so sequences stay rows. No sequences give one token that is not trained
    on.
    """
    if not sequences:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        empty = torch.zeros(0, dtype=torch.int64)
        return MicroBatch(zero, zero, empty, empty, empty, zero, 0)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    if flatten:
        ids = np.concatenate([sequence.input_ids for sequence in sequences])[None]
        positions = np.concatenate([sequence.position_ids for sequence in sequences])[None]
        labels = np.concatenate([shift_labels(sequence) for sequence in sequences])
        sample_lengths = np.concatenate([compute_sample_lengths(each) for each in sequences])[None]
        sequence_index = np.repeat(np.arange(len(sequences)), lengths)
    else:
        shape = (len(sequences), max(lengths))
        ids = np.zeros(shape, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        sample_lengths = np.zeros(shape, dtype=np.int64)
        padded_labels = np.full(shape, IGNORED, dtype=np.int64)
        for index, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            ids[index, :length] = sequence.input_ids
            positions[index, :length] = sequence.position_ids
            # The positions of padding continue the last sample: causal attention hides padding
            # from the tokens before it, and sequences of one sample need no mask at all.
            last = sequence.position_ids[-1]
            positions[index, length:] = np.arange(shape[1] - length) + last + 1
            sample_lengths[index, :length] = compute_sample_lengths(sequence)
            padded_labels[index, :length] = shift_labels(sequence)
        labels = padded_labels.reshape(-1)
        sequence_index = np.repeat(np.arange(len(sequences)), shape[1])
    label_positions = np.flatnonzero(labels != IGNORED)
    return MicroBatch(
        input_ids=torch.from_numpy(ids.astype(np.int64)),
        position_ids=torch.from_numpy(positions.astype(np.int64)),
        label_positions=torch.from_numpy(label_positions),
        labels=torch.from_numpy(labels[label_positions]),
        sequence_index=torch.from_numpy(sequence_index[label_positions]),
        sample_lengths=torch.from_numpy(sample_lengths.astype(np.int64)),
        tokens=sum(lengths),
    )


def collate_rank_batch(sequences: list[PackedSequence], size: int, flatten: bool) -> RankBatch:
    """This rank's part of a global batch of sequences, in micro-batches of `size` sequences."""
    micro_batches = [
        collate(members, flatten) for members in split_into_micro_batches(sequences, size)
    ]
    tokens = sum(len(sequence.input_ids) for sequence in sequences)
    trained = sum(count_trained_tokens(sequence) for sequence in sequences)
    return RankBatch(micro_batches, max(1, trained), tokens)
