"""Pairs of a better and a worse answer to the same prompt, side by side in one forward pass.

Rows 2i and 2i + 1 of the token store are the chosen and the rejected answer of pair i.
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
from finetune_trainer.objectives.collate import RowBatch, collate
from finetune_trainer.strategies import TrainingStrategy

MEASURES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    chosen: PackedSequence
    rejected: PackedSequence
    reference: tuple[float, float] = (0.0, 0.0)
    """The untrained model's log-probabilities of both."""

    @property
    def length(self) -> int:
        """Tokens of the longer row."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))

    @property
    def tokens(self) -> int:
        """Tokens of both rows."""
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)


@dataclass(frozen=True)
class PairBatch(RowBatch):
    """The pairs of one forward pass; the rows are chosen and rejected in turn."""

    reference: torch.Tensor
    """fp32 [pairs, 2]."""


class PairStore:
    """The pairs of one half of the data."""

    def __init__(self, folder: Path) -> None:
        self._store = TokenStore.open(folder)
        self.reference: np.ndarray | None = None
        """fp32 [rows], where there is a reference."""

    @property
    def pairs(self) -> int:
        """How many."""
        return self._store.rows // 2

    def row(self, index: int) -> PackedSequence:
        """A row by its number in the store."""
        return self._store.row(index)

    def pair(self, index: int) -> Pair:
        """The pair with this number, counted from 0."""
        numbers = (2 * index, 2 * index + 1)
        rows = [self._store.row(number) for number in numbers]
        if self.reference is None:
            return Pair(rows[0], rows[1])
        return Pair(
            rows[0], rows[1], (float(self.reference[numbers[0]]), float(self.reference[numbers[1]]))
        )


def rows_of(pairs: Sequence[int]) -> list[int]:
    """Numbers of the rows of some pairs."""
    return [row for pair in pairs for row in (2 * pair, 2 * pair + 1)]


def collate_pairs(pairs: Sequence[Pair], flatten: bool) -> PairBatch:
    """Pairs as one batch of rows; no pairs at all give one token that is not trained on."""
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    reference = torch.tensor([pair.reference for pair in pairs], dtype=torch.float32)
    return PairBatch(collate(rows, flatten), reference.reshape(-1, 2))


def trained_pairs(store: PairStore, setting: ObjectiveContext) -> list[int]:
    """Pairs that some step of the run trains on."""
    plan, seed = setting.plan, setting.spec.training.seed
    return sampler.units_until(store.pairs, plan.total_steps, plan.batch_size, seed)


def held_out_pairs(store: PairStore, setting: ObjectiveContext) -> list[int]:
    """Pairs that the held-out loss is measured on."""
    return list(range(min(setting.spec.evaluation.max_samples, store.pairs)))


def pair_measures(rewards: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
    """Sums of MEASURES, float64 [6]; both arguments are [pairs, 2], chosen first."""
    rewards, logps = rewards.detach().double(), logps.detach().double()
    margins = rewards[:, 0] - rewards[:, 1]
    accuracies = (margins > 0).double()
    columns = (rewards[:, 0], rewards[:, 1], accuracies, margins, logps[:, 0], logps[:, 1])
    return torch.stack([column.sum() for column in columns])


class Tally:
    """Sums of measures since they were last taken; what is only looked at is not counted."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sums = torch.zeros(size, dtype=torch.float64)

    def add(self, sums: torch.Tensor) -> None:
        """Add float64 [size]; ignored outside of training."""
        if torch.is_grad_enabled():
            self._sums = self._sums.to(sums.device) + sums

    def take(self) -> torch.Tensor:
        """The sums, which start again from zero."""
        taken, self._sums = self._sums, torch.zeros(self._size, dtype=torch.float64)
        return taken


class PairObjective:
    """What objectives that learn from pairs have in common: which pairs, and sums of measures."""

    MEASURES: tuple[str, ...] = MEASURES

    def __init__(self, setting: ObjectiveContext) -> None:
        self._setting = setting
        self._train = PairStore(setting.job / "data" / "train")
        self._held_out = PairStore(setting.job / "data" / "eval")
        self._tally = Tally(len(self.MEASURES))

    def begin(self, engine: TrainingStrategy) -> None:
        """Nothing to look at."""

    def share(self, step: int) -> RankBatch:
        """This rank's pairs of a step."""
        plan, seed = self._setting.plan, self._setting.spec.training.seed
        numbers = sampler.units_of(self._train.pairs, step, plan.batch_size, seed)
        return self._share(self._train, numbers)

    def held_out(self) -> RankBatch:
        """This rank's held-out pairs."""
        return self._share(self._held_out, held_out_pairs(self._held_out, self._setting))

    def _share(self, store: PairStore, numbers: Sequence[int]) -> RankBatch:
        # Longest first, as rows are.
        pairs = sorted(map(store.pair, numbers), key=lambda pair: -pair.length)
        dealt = sampler.deal(pairs, self._setting.plan.micro_batch_size)
        batches = [self._collate(members) for members in dealt]
        return RankBatch(batches, max(1, len(pairs)), sum(pair.tokens for pair in pairs))

    def _collate(self, pairs: Sequence[Pair]) -> Any:
        return collate_pairs(pairs, self._setting.flatten)

    def measures(self) -> torch.Tensor:
        """Sums of MEASURES."""
        return self._tally.take()
