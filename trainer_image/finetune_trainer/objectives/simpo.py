"""SimPO: raises the likelihood per token of the chosen completion over that of the rejected one.

The difference should reach a margin. It needs no reference model.
"""

from typing import Any

import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.objectives import preference_pairs
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PreferenceBatch
from finetune_trainer.objectives.reference_free import ReferenceFreeObjective


class SimPOObjective(ReferenceFreeObjective):
    """Mean loss of the pairs of the global batch."""

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        super().__init__(model, context)
        self._settings = context.spec.simpo or finetunejob.SimPO()

    def compute_losses(self, model: Any, micro_batch: PreferenceBatch) -> LossTerms:
        """One loss for every pair."""
        mean_logps = self.compute_mean_logps(model, micro_batch)
        rewards = self._settings.beta * mean_logps
        self._metric_sums.add(preference_pairs.sum_pair_metrics(rewards, mean_logps))
        return LossTerms(simpo_losses(self._settings, mean_logps))


def simpo_losses(settings: finetunejob.SimPO, mean_logps: torch.Tensor) -> torch.Tensor:
    """Loss of each pair [pairs]: -log s(beta (chosen - rejected) - gamma) (Meng et al. 2024, arXiv
    2405.14734, eq. 6). `mean_logps` is [pairs, 2], chosen first."""
    chosen, rejected = mean_logps.unbind(-1)  # [pairs] each
    return -logsigmoid(settings.beta * (chosen - rejected) - settings.gamma)
