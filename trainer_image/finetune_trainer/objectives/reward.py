"""Reward: a score for a conversation, larger with the chosen completion than with the rejected one.

The model is a sequence classifier with one output. As in transformers, the score is the output at
the last token that is not padding, so an exported folder gives every user the scores of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PairwiseObjective, PreferencePair


@dataclass(frozen=True)
class ScoreBatch:
    """The sequences of one forward pass."""

    input_ids: torch.Tensor
    """int64 [batch, length], padded on the right."""
    sequences: int
    """0 if the batch is one padding token in place of no sequences."""
    tokens: int
    """Tokens without padding."""
    sample_lengths: torch.Tensor
    """int64 [batch, length]: length of the sequence that a position belongs to; 0 for padding."""


class RewardObjective(PairwiseObjective):
    """Mean loss of the pairs of the global batch."""

    METRICS: tuple[str, ...] = ("accuracy", "margin", "mean_reward")

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        super().__init__(context)
        self._settings = context.spec.reward or finetunejob.Reward()
        self._pad = int(model.config.pad_token_id)

    def _collate(self, pairs: Sequence[PreferencePair]) -> ScoreBatch:
        return collate_sequences(
            [each for p in pairs for each in (p.chosen, p.rejected)], self._pad
        )

    def compute_losses(self, model: Any, micro_batch: ScoreBatch) -> LossTerms:
        """One loss for every pair."""
        # [pairs, 2], chosen first.
        scores = compute_scores(model, micro_batch, self._context.device).view(-1, 2)
        self._metric_sums.add(sum_score_metrics(scores))
        return LossTerms(reward_losses(self._settings, scores))

    def detach_from_model(self) -> None:
        """The model has no hooks."""


def collate_sequences(sequences: Sequence[PackedSequence], pad: int) -> ScoreBatch:
    """Sequences as the rows of a batch; causal attention does not see the padding to the right."""
    longest = max((len(sequence.input_ids) for sequence in sequences), default=1)
    ids = np.full((max(1, len(sequences)), longest), pad, dtype=np.int64)  # [batch, length]
    lengths = np.zeros(ids.shape, dtype=np.int64)
    for index, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        ids[index, :length] = sequence.input_ids
        lengths[index, :length] = length
    tokens = sum(len(sequence.input_ids) for sequence in sequences)
    return ScoreBatch(torch.from_numpy(ids), len(sequences), tokens, torch.from_numpy(lengths))


def compute_scores(model: Any, micro_batch: ScoreBatch, device: Any) -> torch.Tensor:
    """fp32 [sequences]; `model` is a sequence classifier with one output, or what wraps it."""
    logits = model(input_ids=micro_batch.input_ids.to(device), use_cache=False).logits
    scores: torch.Tensor = logits.float()[: micro_batch.sequences, 0]  # [batch, 1] -> [sequences]
    return scores


def reward_losses(settings: finetunejob.Reward, scores: torch.Tensor) -> torch.Tensor:
    """Loss of each pair [pairs]: -log s(chosen - rejected) (Ouyang et al. 2022, arXiv 2203.02155,
    eq. 1) + centering * (chosen + rejected)^2 (Eisenstein et al. 2023, arXiv 2312.09244, section
    2.2). `scores` is [pairs, 2]."""
    chosen, rejected = scores.unbind(-1)  # [pairs] each
    return -logsigmoid(chosen - rejected) + settings.centering * (chosen + rejected) ** 2


def sum_score_metrics(scores: torch.Tensor) -> torch.Tensor:
    """Sums of RewardObjective.METRICS, float64 [3]; `scores` is [pairs, 2]."""
    scores = scores.detach().double()
    margins = scores[:, 0] - scores[:, 1]  # [pairs]
    return torch.stack([(margins > 0).double().sum(), margins.sum(), scores.mean(-1).sum()])
