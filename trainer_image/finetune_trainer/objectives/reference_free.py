"""Base of the objectives on pairs that compare log-probabilities per token, without a reference."""

from typing import Any

import torch

from finetune_trainer.objectives.base import ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PairwiseObjective, PreferenceBatch
from finetune_trainer.objectives.sequence_logprobs import SequenceLogpsHook, average_logps


class ReferenceFreeObjective(PairwiseObjective):
    """Mean loss of the pairs of the global batch; subclasses compute the losses."""

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        super().__init__(context)
        self._compute_logps = SequenceLogpsHook(model, context.device)

    def compute_mean_logps(self, model: Any, micro_batch: PreferenceBatch) -> torch.Tensor:
        """Logp per token of each completion [pairs, 2], in nats, chosen first."""
        sequences = 2 * len(micro_batch.reference_logps)
        computed = self._compute_logps(model, micro_batch.micro_batch, sequences)
        return average_logps(computed.logps.view(-1, 2), computed.tokens.view(-1, 2))

    def detach_from_model(self) -> None:
        self._compute_logps.detach_from_model()
