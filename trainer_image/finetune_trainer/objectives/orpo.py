"""ORPO: likelihood of the chosen answer, and its odds against the rejected one; no reference."""

from typing import Any

import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.objectives import preference_pairs
from finetune_trainer.objectives.base import Losses, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PairBatch, PairObjective
from finetune_trainer.objectives.sequence_logprobs import RowLikelihood

SUREST = -1e-6
"""Largest mean log-probability whose odds are computed; those of certainty are infinite."""


class ORPOObjective(PairObjective):
    """Mean loss of the pairs of the global batch."""

    MEASURES: tuple[str, ...] = (
        *preference_pairs.MEASURES,
        "nll_loss",
        "log_odds_chosen",
        "log_odds_ratio",
    )

    def __init__(self, model: Any, setting: ObjectiveContext) -> None:
        super().__init__(setting)
        self._settings = setting.spec.orpo or finetunejob.ORPO()
        self._likelihood = RowLikelihood(model, setting.device)

    def losses(self, model: Any, batch: PairBatch) -> Losses:
        """One loss for every pair."""
        seen = self._likelihood(model, batch.rows, 2 * len(batch.reference))
        means = per_token(seen.logps.view(-1, 2), seen.tokens.view(-1, 2))
        odds = log_odds_ratios(means)
        more = [(-means[:, 0]).sum(), odds.sum(), logsigmoid(odds).sum()]
        usual = preference_pairs.pair_measures(self._settings.beta * means, means)
        self._tally.add(torch.cat([usual, torch.stack(more).detach().double()]))
        return Losses(orpo_losses(self._settings, means))

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._likelihood.remove()


def per_token(logps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean log-probability of the tokens of each answer."""
    return logps / tokens.clamp(min=1)


def log_odds_ratios(means: torch.Tensor) -> torch.Tensor:
    """log(odds of chosen / odds of rejected) [pairs], odds = p / (1 - p) with p the geometric mean
    of the tokens' probabilities; `means` is [pairs, 2] (Hong et al. 2024, arXiv 2403.07691, eq. 3
    and 4)."""
    sure = means.clamp(max=SUREST)
    log_odds = sure - torch.log(-torch.expm1(sure))
    return log_odds[:, 0] - log_odds[:, 1]


def orpo_losses(settings: finetunejob.ORPO, means: torch.Tensor) -> torch.Tensor:
    """Loss of each pair [pairs]: -log p(chosen) per token - beta log s(log odds ratio) (Hong et al.
    2024, eq. 6 and 7)."""
    return -means[:, 0] - settings.beta * logsigmoid(log_odds_ratios(means))
