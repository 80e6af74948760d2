"""The loss of GRPO: clipped ratios of probabilities times advantages, averaged in one of four ways.

Pure functions of the policy's current logps of completions that were sampled before. The ways of
averaging have the names, and the divisors, of TRL 1.16.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.objectives.collate import ObjectiveBatch, collate
from finetune_trainer.objectives.rollout import Floats, SampledCompletion
from finetune_trainer.objectives.token_logprobs import TokenLogps

TOKEN_METRICS = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean")
"""Means over the tokens of all completions."""


@dataclass(frozen=True)
class CompletionBatch(ObjectiveBatch):
    """The completions of one forward pass; the tensors are fp32 [n], one value for each label of
    the micro-batch."""

    completions: int
    advantages: torch.Tensor
    old_logps: torch.Tensor | None
    reference_logps: torch.Tensor | None


def collate_completions(completions: Sequence[SampledCompletion], flatten: bool) -> CompletionBatch:
    """Completions as one micro-batch; no completions give one token that is not trained on."""

    def concatenate(parts: Sequence[Floats | None]) -> torch.Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.from_numpy(np.concatenate(present)) if present else None

    micro_batch = collate([each.sequence() for each in completions], flatten)
    # [completions], spread over their labels below.
    advantages = torch.tensor([each.advantage for each in completions], dtype=torch.float32)
    return CompletionBatch(
        micro_batch=micro_batch,
        completions=len(completions),
        advantages=advantages[micro_batch.sequence_index],
        old_logps=concatenate([each.old_logps for each in completions]),
        reference_logps=concatenate([each.reference_logps for each in completions]),
    )


def policy_losses(
    logps: torch.Tensor, batch: CompletionBatch, epsilon: float, beta: float
) -> torch.Tensor:
    """Loss of each token, fp32 [n] (Shao et al. 2024, equation 3): the clipped ratio of
    probabilities times the advantage (Schulman et al. 2017, arXiv 1707.06347, equation 7), and
    beta times the unbiased estimate of the KL divergence from the base model (equation 4)."""
    ratio, advantages = _probability_ratio(logps, batch), batch.advantages.to(logps.device)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)  # [n]
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    if beta > 0:
        losses = losses + beta * estimate_kl(logps, batch)
    return losses


def estimate_kl(logps: torch.Tensor, batch: CompletionBatch) -> torch.Tensor:
    """Estimate of the KL divergence from the base model in nats, fp32 [n]; 0 without reference
    logps."""
    if batch.reference_logps is None:
        return torch.zeros_like(logps)
    log_ratio = batch.reference_logps.to(logps.device) - logps  # [n]
    return log_ratio.exp() - log_ratio - 1


def _probability_ratio(logps: torch.Tensor, batch: CompletionBatch) -> torch.Tensor:
    # If a single step learns from the completions the ratio is 1; its gradient is that of logps.
    old_logps = logps.detach() if batch.old_logps is None else batch.old_logps.to(logps.device)
    return (logps - old_logps).exp()


def average_losses(
    losses: torch.Tensor, sequence_index: torch.Tensor, completions: int, loss: str
) -> torch.Tensor:
    """Losses [k] whose sum, divided by `RankBatch.num_items_in_batch`, is the loss of the step;
    from the losses of tokens [n].

    grpo: the mean of each completion [completions], then over completions (Shao et al. 2024).
    bnpo: the mean over the tokens of the forward pass [1], then over forward passes. dr_grpo: the
    tokens, divided by the longest completion allowed and the number of completions (Liu et al.
    2025, arXiv 2503.20783, section 3.2). dapo: the tokens, divided by all tokens of the step (Yu et
    al. 2025, arXiv 2503.14476, section 3.3).
    """
    if loss == "grpo":
        # [completions]
        lengths = torch.bincount(sequence_index, minlength=completions)[:completions].clamp(min=1)
        return losses.new_zeros(completions).index_add(0, sequence_index, losses) / lengths
    if loss == "bnpo":
        return losses.sum(0, keepdim=True) / max(1, len(losses))
    return losses


def sum_token_metrics(computed: TokenLogps, batch: CompletionBatch, epsilon: float) -> torch.Tensor:
    """Sums of TOKEN_METRICS over tokens, float64 [4]."""
    logps = computed.logps.detach()
    ratio, advantages = _probability_ratio(logps, batch), batch.advantages.to(logps.device)
    columns = (
        computed.entropies,
        estimate_kl(logps, batch),
        (ratio < 1 - epsilon) & (advantages < 0),
        (ratio > 1 + epsilon) & (advantages > 0),
    )
    return torch.stack([column.double().sum() for column in columns])
