"""Reward: a number for a conversation, larger for the chosen answer than for the rejected one.

The model is a sequence classifier with one output, read at the last token that is not padding, by
the rule of transformers, so that whoever loads the exported folder gets the scores of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.objectives.base import Losses, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import Pair, PairObjective


@dataclass(frozen=True)
class ScoreBatch:
    """The rows of one forward pass."""

    input_ids: torch.Tensor
    """int64 [rows, length], padded on the right."""
    rows: int
    """0 where one padding token stands for no rows at all."""
    tokens: int
    """Tokens without padding."""
    lengths: torch.Tensor
    """int64 [rows, length]: length of the row that a position belongs to; 0 for padding."""


class RewardObjective(PairObjective):
    """Mean loss of the pairs of the global batch."""

    MEASURES: tuple[str, ...] = ("accuracy", "margin", "mean_reward")

    def __init__(self, model: Any, setting: ObjectiveContext) -> None:
        super().__init__(setting)
        self._settings = setting.spec.reward or finetunejob.Reward()
        self._pad = int(model.config.pad_token_id)

    def _collate(self, pairs: Sequence[Pair]) -> ScoreBatch:
        return collate_scored([row for p in pairs for row in (p.chosen, p.rejected)], self._pad)

    def losses(self, model: Any, batch: ScoreBatch) -> Losses:
        """One loss for every pair."""
        scores = scores_of(model, batch, self._setting.device).view(-1, 2)
        self._tally.add(score_measures(scores))
        return Losses(reward_losses(self._settings, scores))

    def remove(self) -> None:
        """Nothing was changed."""


def collate_scored(rows: Sequence[PackedSequence], pad: int) -> ScoreBatch:
    """Rows side by side; causal attention sees no padding to its right."""
    longest = max((len(row.input_ids) for row in rows), default=1)
    ids = np.full((max(1, len(rows)), longest), pad, dtype=np.int64)
    lengths = np.zeros(ids.shape, dtype=np.int64)
    for line, within, row in zip(ids, lengths, rows, strict=False):
        line[: len(row.input_ids)] = row.input_ids
        within[: len(row.input_ids)] = len(row.input_ids)
    tokens = sum(len(row.input_ids) for row in rows)
    return ScoreBatch(torch.from_numpy(ids), len(rows), tokens, torch.from_numpy(lengths))


def scores_of(model: Any, batch: ScoreBatch, device: Any) -> torch.Tensor:
    """fp32 [rows]; `model` is a sequence classifier with one output, or what wraps it."""
    logits = model(input_ids=batch.input_ids.to(device), use_cache=False).logits
    scores: torch.Tensor = logits.float()[: batch.rows, 0]
    return scores


def reward_losses(settings: finetunejob.Reward, scores: torch.Tensor) -> torch.Tensor:
    """Loss of each pair [pairs]: -log s(chosen - rejected) (Ouyang et al. 2022, arXiv 2203.02155,
    eq. 1) + centering * (chosen + rejected)^2 (Eisenstein et al. 2023, arXiv 2312.09244, section
    2.2). `scores` is [pairs, 2]."""
    chosen, rejected = scores.unbind(-1)
    return -logsigmoid(chosen - rejected) + settings.centering * (chosen + rejected) ** 2


def score_measures(scores: torch.Tensor) -> torch.Tensor:
    """Sums of RewardModel.MEASURES, float64 [3]."""
    scores = scores.detach().double()
    margins = scores[:, 0] - scores[:, 1]
    return torch.stack([(margins > 0).double().sum(), margins.sum(), scores.mean(-1).sum()])
