"""Preference pairs: a chosen and a rejected completion of one prompt, in the same forward pass.

Sequences 2i and 2i + 1 of the token store are the chosen and the rejected completion of pair i,
each with the prompt before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_trainer.data import sampler
from finetune_trainer.data.token_store import PackedSequence, TokenStore
from finetune_trainer.objectives.base import ObjectiveContext, RankBatch
from finetune_trainer.objectives.collate import ObjectiveBatch, collate
from finetune_trainer.strategies import TrainingStrategy

METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one prompt."""

    chosen: PackedSequence
    rejected: PackedSequence
    reference_logps: tuple[float, float] = (0.0, 0.0)
    """Of the chosen and the rejected completion, in nats."""

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))

    @property
    def tokens(self) -> int:
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)


@dataclass(frozen=True)
class PreferenceBatch(ObjectiveBatch):
    """The pairs of one forward pass; its sequences are chosen and rejected in turn."""

    reference_logps: torch.Tensor
    """fp32 [pairs, 2], chosen first."""


class PreferenceStore:
    """The pairs of one split, "train" or "eval"."""

    def __init__(self, folder: Path) -> None:
        self._store = TokenStore.open(folder)
        self.reference_logps: np.ndarray | None = None
        """fp32 [sequences]; None for an objective without a reference."""

    @property
    def pair_count(self) -> int:
        return self._store.sequence_count // 2

    def sequence(self, index: int) -> PackedSequence:
        """Sequence 2i is the chosen completion of pair i, 2i + 1 the rejected one."""
        return self._store.sequence(index)

    def pair(self, index: int) -> PreferencePair:
        """A pair by its index, counted from 0."""
        chosen, rejected = (self._store.sequence(number) for number in sequence_indices([index]))
        if self.reference_logps is None:
            return PreferencePair(chosen, rejected)
        logps = self.reference_logps[2 * index : 2 * index + 2]
        return PreferencePair(chosen, rejected, (float(logps[0]), float(logps[1])))


def sequence_indices(pairs: Sequence[int]) -> list[int]:
    """Indices of the sequences of some pairs, chosen and rejected in turn."""
    return [index for pair in pairs for index in (2 * pair, 2 * pair + 1)]


def collate_pairs(pairs: Sequence[PreferencePair], flatten: bool) -> PreferenceBatch:
    """Pairs as one micro-batch; no pairs give one token that is not trained on."""
    sequences = [sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)]
    logps = torch.tensor([pair.reference_logps for pair in pairs], dtype=torch.float32)
    return PreferenceBatch(collate(sequences, flatten), logps.reshape(-1, 2))


def select_trained_pairs(store: PreferenceStore, context: ObjectiveContext) -> list[int]:
    """Pairs that some step of the run trains on."""
    plan, seed = context.plan, context.spec.training.seed
    return sampler.indices_until(store.pair_count, plan.total_steps, plan.batch_size, seed)


def select_held_out_pairs(store: PreferenceStore, context: ObjectiveContext) -> list[int]:
    """Pairs that the held-out loss is measured on."""
    return list(range(min(context.spec.evaluation.max_samples, store.pair_count)))


def sum_pair_metrics(rewards: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
    """Sums of METRICS, float64 [6]; both arguments are [pairs, 2], chosen first."""
    rewards, logps = rewards.detach().double(), logps.detach().double()
    margins = rewards[:, 0] - rewards[:, 1]
    accuracies = (margins > 0).double()
    columns = (rewards[:, 0], rewards[:, 1], accuracies, margins, logps[:, 0], logps[:, 1])
    return torch.stack([column.sum() for column in columns])


class MetricSums:
    """Sums of metrics since they were last taken; passes without gradients are not counted."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sums = torch.zeros(size, dtype=torch.float64)

    def add(self, sums: torch.Tensor) -> None:
        """Add float64 [size]; does nothing outside of training."""
        if torch.is_grad_enabled():
            self._sums = self._sums.to(sums.device) + sums

    def take(self) -> torch.Tensor:
        """Return the sums, and restart them from zero."""
        sums, self._sums = self._sums, torch.zeros(self._size, dtype=torch.float64)
        return sums


class PairwiseObjective:
    """Base of the objectives that learn from preference pairs: batches and sums of metrics."""

    METRICS: tuple[str, ...] = METRICS

    def __init__(self, context: ObjectiveContext) -> None:
        self._context = context
        self._train = PreferenceStore(context.job / "data" / "train")
        self._held_out = PreferenceStore(context.job / "data" / "eval")
        self._metric_sums = MetricSums(len(self.METRICS))

    def inspect_untrained_model(self, strategy: TrainingStrategy) -> None:
        """Nothing to do without a reference."""

    def make_rank_batch(self, step: int) -> RankBatch:
        plan, seed = self._context.plan, self._context.spec.training.seed
        pairs = sampler.step_indices(self._train.pair_count, step, plan.batch_size, seed)
        return self._collate_rank_batch(self._train, pairs)

    def make_held_out_batch(self) -> RankBatch:
        pairs = select_held_out_pairs(self._held_out, self._context)
        return self._collate_rank_batch(self._held_out, pairs)

    def _collate_rank_batch(self, store: PreferenceStore, indices: Sequence[int]) -> RankBatch:
        # Longest first, as in `sampler.global_batch`.
        pairs = sorted(map(store.pair, indices), key=lambda pair: -pair.longest)
        size = self._context.plan.micro_batch_size
        micro_batches = [
            self._collate(members) for members in sampler.split_into_micro_batches(pairs, size)
        ]
        return RankBatch(micro_batches, max(1, len(pairs)), sum(pair.tokens for pair in pairs))

    def _collate(self, pairs: Sequence[PreferencePair]) -> Any:
        return collate_pairs(pairs, self._context.flatten)

    def take_metrics(self) -> torch.Tensor:
        return self._metric_sums.take()
