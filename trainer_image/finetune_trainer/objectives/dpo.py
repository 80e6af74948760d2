"""DPO: the chosen answer becomes likelier than the rejected one, measured against a reference.

The reference is the untrained model; its log-probabilities are computed once (see reference.py).
Written for a pair with log-ratios c = log pi(chosen) - log ref(chosen), r likewise for the
rejected answer, and d = c - r. s is the logistic function.
"""

import math
from typing import Any

import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.objectives import preference_pairs
from finetune_trainer.objectives.base import Losses, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PairBatch, PairObjective
from finetune_trainer.objectives.reference_logprobs import reference_logps
from finetune_trainer.objectives.sequence_logprobs import RowLikelihood
from finetune_trainer.strategies import TrainingStrategy

LEAST_SMOOTHING = 1e-3
"""exo_pair needs the logarithm of the label smoothing; this stands for none."""


class DPOObjective(PairObjective):
    """Mean loss of the pairs of the global batch."""

    def __init__(self, model: Any, setting: ObjectiveContext) -> None:
        super().__init__(setting)
        self._settings = setting.spec.dpo or finetunejob.DPO()
        self._likelihood = RowLikelihood(model, setting.device)

    def begin(self, engine: TrainingStrategy) -> None:
        """Take down what the untrained model thinks of the pairs to come."""
        halves = (
            ("train", self._train, preference_pairs.trained_pairs),
            ("eval", self._held_out, preference_pairs.held_out_pairs),
        )
        for name, store, wanted in halves:
            numbers = preference_pairs.rows_of(wanted(store, self._setting))
            store.reference = reference_logps(
                name, store.row, numbers, self._setting, engine, self._likelihood
            )

    def losses(self, model: Any, batch: PairBatch) -> Losses:
        """One loss for every pair."""
        seen = self._likelihood(model, batch.rows, 2 * len(batch.reference))
        logps, tokens = seen.logps.view(-1, 2), seen.tokens.view(-1, 2)
        reference = batch.reference.to(logps.device)
        rewards = self._settings.beta * (logps - reference)
        self._tally.add(preference_pairs.pair_measures(rewards, logps))
        return Losses(dpo_losses(self._settings, logps, reference, tokens))

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._likelihood.remove()


def dpo_losses(
    settings: finetunejob.DPO, logps: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Loss of each pair [pairs]; the arguments are [pairs, 2], chosen first.

    sigmoid: -(1-e) log s(bd) - e log s(-bd) with e = labelSmoothing (Rafailov et al. 2023, arXiv
    2305.18290, eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy preferences").
    hinge: max(0, 1 - bd) (Zhao et al. 2023, SLiC-HF, arXiv 2305.10425, eq. 2, normalised by the
    reference as in Liu et al. 2023, arXiv 2309.06657).
    ipo: (d - 1/2b)^2 on log-ratios per token (Azar et al. 2023, arXiv 2310.12036, eq. 17; the mean
    over tokens as its authors advise).
    robust: (-(1-e) log s(bd) + e log s(-bd)) / (1-2e) (Chowdhury et al. 2024, arXiv 2403.00409,
    eq. 12).
    exo_pair: KL of (s(bd), s(-bd)) from (1-e, e) (Ji et al. 2024, arXiv 2402.00856, eq. 16).
    nca_pair: -log s(bc) - (log s(-bc) + log s(-br)) / 2 (Chen et al. 2024, arXiv 2402.05369).
    sppo_hard: (c - 1/2b)^2 + (r + 1/2b)^2 (Wu et al. 2024, arXiv 2405.00675, eq. 4.7 with
    probabilities of one and zero).
    apo_zero: 1 - s(bc) + s(br), apo_down: s(bc) + 1 - s(bd) (D'Oosterlinck et al. 2024, arXiv
    2408.06266, eq. 7 and 8).
    """
    beta, smoothing = settings.beta, settings.label_smoothing
    ratios = logps - reference
    chosen, rejected = ratios.unbind(-1)
    scaled = beta * (chosen - rejected)
    match settings.loss:
        case "sigmoid":
            return -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)
        case "hinge":
            return torch.relu(1 - scaled)
        case "ipo":
            chosen, rejected = (ratios / tokens.clamp(min=1)).unbind(-1)
            return (chosen - rejected - 1 / (2 * beta)) ** 2
        case "robust":
            mixed = smoothing * logsigmoid(-scaled) - (1 - smoothing) * logsigmoid(scaled)
            return mixed / (1 - 2 * smoothing)
        case "exo_pair":
            doubt = smoothing or LEAST_SMOOTHING
            right = torch.sigmoid(scaled) * (logsigmoid(scaled) - math.log1p(-doubt))
            wrong = torch.sigmoid(-scaled) * (logsigmoid(-scaled) - math.log(doubt))
            return right + wrong
        case "nca_pair":
            up, down, other = (beta * part for part in (chosen, -chosen, -rejected))
            return -logsigmoid(up) - 0.5 * logsigmoid(down) - 0.5 * logsigmoid(other)
        case "sppo_hard":
            return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
        case "apo_zero":
            return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
        case "apo_down":
            return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(scaled)
