"""The loss of GRPO: clipped ratios of probabilities times advantages, averaged in one of four ways.

Pure functions of what the policy now thinks of answers that were sampled before. The ways of
averaging have the names, and the divisors, of TRL 1.16.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.objectives.collate import RowBatch, collate
from finetune_trainer.objectives.rollout import Floats, Sampled
from finetune_trainer.objectives.token_logprobs import TokenLikelihood

TOKEN_MEASURES = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean")
"""Means over the tokens of all answers."""


@dataclass(frozen=True)
class AnswerBatch(RowBatch):
    """The answers of one forward pass; the arrays follow `rows.targets`, fp32 [n]."""

    answers: int
    advantages: torch.Tensor
    old: torch.Tensor | None
    reference: torch.Tensor | None


def collate_answers(answers: Sequence[Sampled], flatten: bool) -> AnswerBatch:
    """Answers as one batch of rows; none at all give one token that is not trained on."""

    def joined(parts: Sequence[Floats | None]) -> torch.Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.from_numpy(np.concatenate(there)) if there else None

    rows = collate([each.row() for each in answers], flatten)
    advantages = torch.tensor([each.advantage for each in answers], dtype=torch.float32)
    return AnswerBatch(
        rows=rows,
        answers=len(answers),
        advantages=advantages[rows.owners],
        old=joined([each.old for each in answers]),
        reference=joined([each.reference for each in answers]),
    )


def token_losses(
    logps: torch.Tensor, batch: AnswerBatch, epsilon: float, beta: float
) -> torch.Tensor:
    """Loss of each token, fp32 [n] (Shao et al. 2024, equation 3): the clipped ratio of
    probabilities times the advantage (Schulman et al. 2017, arXiv 1707.06347, equation 7), and
    beta times the unbiased estimate of the divergence from the base model (equation 4)."""
    ratio, gains = _ratio(logps, batch), batch.advantages.to(logps.device)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    losses = -torch.minimum(ratio * gains, clipped * gains)
    if beta > 0:
        losses = losses + beta * divergence(logps, batch)
    return losses


def divergence(logps: torch.Tensor, batch: AnswerBatch) -> torch.Tensor:
    """Estimate of the divergence from the base model in nats, fp32 [n]; 0 without a reference."""
    if batch.reference is None:
        return torch.zeros_like(logps)
    further = batch.reference.to(logps.device) - logps
    return further.exp() - further - 1


def _ratio(logps: torch.Tensor, batch: AnswerBatch) -> torch.Tensor:
    # Where nothing was learnt since sampling the ratio is one, and its gradient is that of logps.
    old = logps.detach() if batch.old is None else batch.old.to(logps.device)
    return (logps - old).exp()


def averaged(losses: torch.Tensor, owners: torch.Tensor, answers: int, loss: str) -> torch.Tensor:
    """What is summed and divided by the weight of the share, from the losses of tokens [n].

    grpo: the mean of each answer [answers], then over answers (Shao et al. 2024). bnpo: the mean
    over the tokens of the forward pass [1], then over forward passes. dr_grpo: the tokens, divided
    by the longest answer allowed and the answers (Liu et al. 2025, arXiv 2503.20783, section 3.2).
    dapo: the tokens, divided by all tokens of the step (Yu et al. 2025, arXiv 2503.14476, section
    3.3).
    """
    if loss == "grpo":
        lengths = torch.bincount(owners, minlength=answers)[:answers].clamp(min=1)
        return losses.new_zeros(answers).index_add(0, owners, losses) / lengths
    if loss == "bnpo":
        return losses.sum(0, keepdim=True) / max(1, len(losses))
    return losses


def token_measures(found: TokenLikelihood, batch: AnswerBatch, epsilon: float) -> torch.Tensor:
    """Sums of TOKEN_MEASURES over tokens, float64 [4]."""
    logps = found.logps.detach()
    ratio, gains = _ratio(logps, batch), batch.advantages.to(logps.device)
    columns = (
        found.entropies,
        divergence(logps, batch),
        (ratio < 1 - epsilon) & (gains < 0),
        (ratio > 1 + epsilon) & (gains > 0),
    )
    return torch.stack([column.double().sum() for column in columns])
