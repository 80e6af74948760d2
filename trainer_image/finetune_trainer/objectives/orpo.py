"""ORPO: the likelihood of the chosen completion, and its odds against the rejected one.

It needs no reference model.
"""

from typing import Any

import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.objectives import preference_pairs
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PreferenceBatch
from finetune_trainer.objectives.reference_free import ReferenceFreeObjective

MAX_MEAN_LOGP = -1e-6
"""Mean logps are clamped to it before odds are computed: the odds of certainty are infinite."""


class ORPOObjective(ReferenceFreeObjective):
    """Mean loss of the pairs of the global batch."""

    METRICS: tuple[str, ...] = (
        *preference_pairs.METRICS,
        "nll_loss",
        "log_odds_chosen",
        "log_odds_ratio",
    )

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        super().__init__(model, context)
        self._settings = context.spec.orpo or finetunejob.ORPO()

    def compute_losses(self, model: Any, micro_batch: PreferenceBatch) -> LossTerms:
        """One loss for every pair."""
        mean_logps = self.compute_mean_logps(model, micro_batch)
        odds = log_odds_ratios(mean_logps)  # [pairs]
        of_pairs = preference_pairs.sum_pair_metrics(self._settings.beta * mean_logps, mean_logps)
        of_odds = [(-mean_logps[:, 0]).sum(), odds.sum(), logsigmoid(odds).sum()]
        self._metric_sums.add(torch.cat([of_pairs, torch.stack(of_odds).detach().double()]))
        return LossTerms(orpo_losses(self._settings, mean_logps))


def log_odds_ratios(mean_logps: torch.Tensor) -> torch.Tensor:
    """log(odds of chosen / odds of rejected) [pairs], odds = p / (1 - p) with p the geometric mean
    of the tokens' probabilities; `mean_logps` is [pairs, 2] (Hong et al. 2024, arXiv 2403.07691,
    eq. 3 and 4)."""
    clamped = mean_logps.clamp(max=MAX_MEAN_LOGP)
    log_odds = clamped - torch.log(-torch.expm1(clamped))  # [pairs, 2]
    return log_odds[:, 0] - log_odds[:, 1]


def orpo_losses(settings: finetunejob.ORPO, mean_logps: torch.Tensor) -> torch.Tensor:
    """Loss of each pair [pairs]: -log p(chosen) per token - beta log s(log odds ratio) (Hong et al.
    2024, eq. 6 and 7). `mean_logps` is [pairs, 2]."""
    return -mean_logps[:, 0] - settings.beta * logsigmoid(log_odds_ratios(mean_logps))
