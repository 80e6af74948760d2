"""SimPO: raises the likelihood per token of the chosen completion over that of the rejected one.

The difference should reach a margin. It needs no reference model.
"""

from typing import Any

import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.objectives import preference_pairs
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PairwiseObjective, PreferenceBatch
from finetune_trainer.objectives.sequence_logprobs import SequenceLogpsHook, average_logps


class SimPOObjective(PairwiseObjective):
    """Mean loss of the pairs of the global batch."""

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        super().__init__(context)
        self._settings = context.spec.simpo or finetunejob.SimPO()
        self._compute_logps = SequenceLogpsHook(model, context.device)

    def compute_losses(self, model: Any, micro_batch: PreferenceBatch) -> LossTerms:
        """One loss for every pair."""
        sequences = 2 * len(micro_batch.reference_logps)
        computed = self._compute_logps(model, micro_batch.micro_batch, sequences)
        # [pairs, 2], chosen first.
        mean_logps = average_logps(computed.logps.view(-1, 2), computed.tokens.view(-1, 2))
        rewards = self._settings.beta * mean_logps
        self._metric_sums.add(preference_pairs.sum_pair_metrics(rewards, mean_logps))
        return LossTerms(simpo_losses(self._settings, mean_logps))

    def detach_from_model(self) -> None:
        self._compute_logps.detach_from_model()


def simpo_losses(settings: finetunejob.SimPO, mean_logps: torch.Tensor) -> torch.Tensor:
    """Loss of each pair [pairs]: -log s(beta (chosen - rejected) - gamma) (Meng et al. 2024, arXiv
    2405.14734, eq. 6). `mean_logps` is [pairs, 2], chosen first."""
    chosen, rejected = mean_logps.unbind(-1)  # [pairs] each
    return -logsigmoid(settings.beta * (chosen - rejected) - settings.gamma)
