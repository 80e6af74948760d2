"""DPO: raises the likelihood of the chosen completion over the rejected one, against a reference.

The reference is the untrained model; its logps are computed once (see `reference_logprobs`).
Written for a pair with log-ratios c = log pi(chosen) - log ref(chosen), r likewise for the
rejected completion, and d = c - r. s is the logistic function.
"""

import math
from typing import Any

import torch
from finetune_api import finetunejob
from torch.nn.functional import logsigmoid

from finetune_trainer.objectives import preference_pairs
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext
from finetune_trainer.objectives.preference_pairs import PairwiseObjective, PreferenceBatch
from finetune_trainer.objectives.reference_logprobs import load_or_compute_reference_logps
from finetune_trainer.objectives.sequence_logprobs import SequenceLogpsHook
from finetune_trainer.strategies import TrainingStrategy

MIN_LABEL_SMOOTHING = 1e-3
"""Used by exo_pair in place of no label smoothing, because it needs the logarithm."""


class DPOObjective(PairwiseObjective):
    """Mean loss of the pairs of the global batch."""

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        super().__init__(context)
        self._settings = context.spec.dpo or finetunejob.DPO()
        self._compute_logps = SequenceLogpsHook(model, context.device)

    def inspect_untrained_model(self, strategy: TrainingStrategy) -> None:
        """Load or compute the reference logps of all pairs that are trained or held out."""
        splits = (
            ("train", self._train, preference_pairs.select_trained_pairs),
            ("eval", self._held_out, preference_pairs.select_held_out_pairs),
        )
        for name, store, select in splits:
            indices = preference_pairs.sequence_indices(select(store, self._context))
            store.reference_logps = load_or_compute_reference_logps(
                name, store.sequence, indices, self._context, strategy, self._compute_logps
            )

    def compute_losses(self, model: Any, micro_batch: PreferenceBatch) -> LossTerms:
        """One loss for every pair."""
        sequences = 2 * len(micro_batch.reference_logps)
        computed = self._compute_logps(model, micro_batch.micro_batch, sequences)
        # All [pairs, 2], chosen first.
        logps, tokens = computed.logps.view(-1, 2), computed.tokens.view(-1, 2)
        reference_logps = micro_batch.reference_logps.to(logps.device)
        rewards = self._settings.beta * (logps - reference_logps)
        self._metric_sums.add(preference_pairs.sum_pair_metrics(rewards, logps))
        return LossTerms(dpo_losses(self._settings, logps, reference_logps, tokens))

    def detach_from_model(self) -> None:
        self._compute_logps.detach_from_model()


def dpo_losses(
    settings: finetunejob.DPO,
    logps: torch.Tensor,
    reference_logps: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Loss of each pair [pairs]: the preference loss, and nllWeight times the negative
    log-likelihood per token of the chosen completion. The tensors are [pairs, 2], chosen first."""
    losses = preference_losses(settings, logps, reference_logps, tokens)
    if settings.nll_weight:
        losses = losses - settings.nll_weight * logps[:, 0] / tokens[:, 0].clamp(min=1)
    return losses


def preference_losses(
    settings: finetunejob.DPO,
    logps: torch.Tensor,
    reference_logps: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Loss of each pair [pairs]; the tensors are [pairs, 2], chosen first.

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
    log_ratios = logps - reference_logps  # [pairs, 2]
    chosen, rejected = log_ratios.unbind(-1)  # c and r, [pairs] each
    scaled = beta * (chosen - rejected)  # bd, [pairs]
    match settings.loss:
        case "sigmoid":
            return -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)
        case "hinge":
            return torch.relu(1 - scaled)
        case "ipo":
            chosen, rejected = (log_ratios / tokens.clamp(min=1)).unbind(-1)
            return (chosen - rejected - 1 / (2 * beta)) ** 2
        case "robust":
            mixed = smoothing * logsigmoid(-scaled) - (1 - smoothing) * logsigmoid(scaled)
            return mixed / (1 - 2 * smoothing)
        case "exo_pair":
            epsilon = smoothing or MIN_LABEL_SMOOTHING
            of_chosen = torch.sigmoid(scaled) * (logsigmoid(scaled) - math.log1p(-epsilon))
            of_rejected = torch.sigmoid(-scaled) * (logsigmoid(-scaled) - math.log(epsilon))
            return of_chosen + of_rejected
        case "nca_pair":
            up, down, other = (beta * part for part in (chosen, -chosen, -rejected))
            return -logsigmoid(up) - 0.5 * logsigmoid(down) - 0.5 * logsigmoid(other)
        case "sppo_hard":
            return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
        case "apo_zero":
            return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
        case "apo_down":
            return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(scaled)
