"""The held-out loss: that of the job's objective, for the base and the tuned model.

A forward pass gives only log-probabilities of completions, or scores of a reward model; every loss
follows from these without the model. So the base model goes over the data once, and is its own
reference and the tuned model's: its loss is that of a model which has learnt nothing, ln 2 for DPO.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
import torch
from finetune_api import finetunejob
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_trainer.data.length_batches import group_by_length
from finetune_trainer.data.token_store import PackedSequence, TokenStore
from finetune_trainer.metrics.statistics import Correctness, PairOrderStatistic, Statistic
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.dpo import dpo_losses
from finetune_trainer.objectives.kto import (
    UnpairedPreferenceStore,
    estimate_reference_point,
    kto_losses,
)
from finetune_trainer.objectives.orpo import orpo_losses
from finetune_trainer.objectives.preference_pairs import sequence_indices
from finetune_trainer.objectives.reward import collate_sequences, compute_scores, reward_losses
from finetune_trainer.objectives.sequence_logprobs import average_logps
from finetune_trainer.objectives.sft import OutputHeadLoss
from finetune_trainer.objectives.simpo import simpo_losses

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
ReportDone = Callable[[int], None]
"""Called with the number of sequences done."""


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of one model for the held-out sequences."""

    values: np.ndarray
    """float64 [sequences]: log p(completion | prompt) in nats, or the score of a reward model."""
    tokens: np.ndarray
    """int64 [sequences]: tokens with a label; for a score all tokens of the sequence."""


@dataclass(frozen=True)
class HeldOutLosses:
    """The objective's loss of every item; the mean loss is sum(losses) / sum(weights)."""

    losses: np.ndarray
    """float64 [items]."""
    weights: np.ndarray
    """int64 [items]: tokens of a sequence, one for a pair or a completion."""


class HeldOutSet(Protocol):
    """The held-out data of one objective; an item is a sequence, a pair or a completion."""

    indices: np.ndarray
    """int64 [items]: which of the held-out items are evaluated."""
    sequence_count: int
    """Sequences that go through the model."""

    def run_model(self, model: Any, report_done: ReportDone) -> ModelOutputs:
        """Forward passes over all sequences."""

    def compute_losses(self, outputs: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """The losses of a model whose reference is the base."""

    def measure_preferences(self, outputs: ModelOutputs) -> Statistic | None:
        """How often the model prefers the better completion of a pair; None without pairs."""


def open_held_out(spec: FineTuneJobSpec, folder: Path) -> HeldOutSet | None:
    """The held-out data of an objective in the token store `folder`; GRPO has no held-out loss."""
    match spec.objective:
        case "GRPO":
            return None
        case "SFT" | "Completion":
            return HeldOutTokens(spec, folder)
        case "KTO":
            return HeldOutUnpairedPreferences(spec, folder)
        case "Reward":
            return HeldOutScores(spec, folder)
        case "DPO" | "ORPO" | "SimPO":
            return HeldOutPreferences(spec, folder)
        case _:
            assert_never(spec.objective)


class HeldOutTokens:
    """SFT and Completion: negative log-likelihood of tokens."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        store = TokenStore.open(folder)
        self.indices = choose_indices(spec, store.sequence_count)
        self._sequences = [store.sequence(int(index)) for index in self.indices]
        self.sequence_count = len(self._sequences)

    def run_model(self, model: Any, report_done: ReportDone) -> ModelOutputs:
        return compute_logps(model, self._sequences, report_done)

    def compute_losses(self, outputs: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """In nats, weighted by tokens."""
        return HeldOutLosses(-outputs.values, outputs.tokens)

    def measure_preferences(self, outputs: ModelOutputs) -> Statistic | None:
        return None


class HeldOutPreferences:
    """DPO, ORPO and SimPO: pairs of completions."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        self._spec = spec
        self.indices, self._sequences = open_pairs(spec, folder)
        self.sequence_count = len(self._sequences)

    def run_model(self, model: Any, report_done: ReportDone) -> ModelOutputs:
        return compute_logps(model, self._sequences, report_done)

    def compute_losses(self, outputs: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """One for every pair."""
        # All [pairs, 2], chosen first.
        logps, tokens, reference = (
            torch.from_numpy(array).double().view(-1, 2)
            for array in (outputs.values, outputs.tokens, base.values)
        )
        if self._spec.objective == "ORPO":
            orpo = self._spec.orpo or finetunejob.ORPO()
            return weigh_equally(orpo_losses(orpo, average_logps(logps, tokens)))
        if self._spec.objective == "SimPO":
            simpo = self._spec.simpo or finetunejob.SimPO()
            return weigh_equally(simpo_losses(simpo, average_logps(logps, tokens)))
        dpo = self._spec.dpo or finetunejob.DPO()
        return weigh_equally(dpo_losses(dpo, logps, reference, tokens))

    def measure_preferences(self, outputs: ModelOutputs) -> Statistic | None:
        """By log-probability, for ORPO and SimPO per token."""
        if self._spec.objective in ("ORPO", "SimPO"):
            return find_preferences(outputs.values / np.maximum(1, outputs.tokens))
        return find_preferences(outputs.values)


class HeldOutScores:
    """Reward: scores of pairs."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        self._settings = spec.reward or finetunejob.Reward()
        self.indices, self._sequences = open_pairs(spec, folder)
        self.sequence_count = len(self._sequences)

    def run_model(self, model: Any, report_done: ReportDone) -> ModelOutputs:
        scores = np.zeros(len(self._sequences))  # [sequences]
        tokens = np.array([len(each.input_ids) for each in self._sequences], dtype=np.int64)
        pad, done = int(model.config.get_text_config().pad_token_id), 0
        with torch.no_grad():
            for members in group_by_length(tokens.tolist(), TOKENS_PER_BATCH[model.device.type]):
                batch = collate_sequences([self._sequences[index] for index in members], pad)
                scores[members] = compute_scores(model, batch, model.device).double().cpu().numpy()
                done += len(members)
                report_done(done)
        return ModelOutputs(scores, tokens)

    def compute_losses(self, outputs: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """One for every pair."""
        scores = torch.from_numpy(outputs.values).view(-1, 2)  # [pairs, 2], chosen first
        return weigh_equally(reward_losses(self._settings, scores))

    def measure_preferences(self, outputs: ModelOutputs) -> Statistic | None:
        """By score; the base has the head that training began from."""
        return find_preferences(outputs.values)


class HeldOutUnpairedPreferences:
    """KTO: single completions, and the same prompts with mismatched ones for the reference
    point."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        self._settings = spec.kto or finetunejob.KTO()
        training = spec.training
        store = UnpairedPreferenceStore(folder, training.seed, training.max_sequence_length)
        self.indices = choose_indices(spec, store.completion_count)
        chosen = [int(index) for index in self.indices]
        self._is_desirable = np.asarray(store.is_desirable[chosen], dtype=bool)
        self._sequences = [
            *(store.sequence(index) for index in chosen),
            *(store.mismatched_sequence(index) for index in chosen),
        ]
        self.sequence_count = len(self._sequences)

    def run_model(self, model: Any, report_done: ReportDone) -> ModelOutputs:
        """Log-probabilities of all completions, then of the mismatched ones."""
        return compute_logps(model, self._sequences, report_done)

    def compute_losses(self, outputs: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """One for every completion."""
        count = len(self.indices)
        logps, reference = torch.from_numpy(outputs.values), torch.from_numpy(base.values)
        kl = estimate_reference_point((logps - reference)[count:].mean())
        is_desirable = torch.from_numpy(self._is_desirable)
        losses = kto_losses(self._settings, logps[:count], reference[:count], is_desirable, kl)
        return weigh_equally(losses)

    def measure_preferences(self, outputs: ModelOutputs) -> Statistic | None:
        """Over all pairs of a desirable and an undesirable completion, by log-probability per
        token, because their prompts and lengths differ."""
        # [completions]
        means = (outputs.values / np.maximum(1, outputs.tokens))[: len(self.indices)]
        if self._is_desirable.all() or not self._is_desirable.any():
            return None
        return PairOrderStatistic(means, self._is_desirable)


def choose_indices(spec: FineTuneJobSpec, count: int) -> np.ndarray:
    """Which of `count` items are evaluated, int64 [items], in an order that the seed decides."""
    order = np.random.default_rng(spec.training.seed).permutation(count)
    return order[: spec.evaluation.max_samples]


def open_pairs(spec: FineTuneJobSpec, folder: Path) -> tuple[np.ndarray, list[PackedSequence]]:
    """The indices of the evaluated pairs, and their sequences, chosen and rejected in turn."""
    store = TokenStore.open(folder)
    indices = choose_indices(spec, store.sequence_count // 2)
    numbers = sequence_indices([int(index) for index in indices])
    return indices, [store.sequence(number) for number in numbers]


def weigh_equally(losses: torch.Tensor) -> HeldOutLosses:
    """Every item counts as one."""
    return HeldOutLosses(losses.numpy(), np.ones(len(losses), dtype=np.int64))


def find_preferences(values: np.ndarray) -> Correctness | None:
    """Which pairs have a first value that is the larger one; `values` is [2 * pairs]."""
    pairs = values.reshape(-1, 2)
    return Correctness(pairs[:, 0] > pairs[:, 1]) if len(pairs) else None


def compute_logps(
    model: Any, sequences: Sequence[PackedSequence], report_done: ReportDone
) -> ModelOutputs:
    """The summed log-probability of the labels of each sequence, and their number."""
    compute_loss = OutputHeadLoss(model)
    logps, tokens = np.zeros(len(sequences)), np.zeros(len(sequences), dtype=np.int64)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    done = 0
    with torch.no_grad():
        for members in group_by_length(lengths, TOKENS_PER_BATCH[model.device.type]):
            batch = collate([sequences[index] for index in members])
            losses = compute_loss(model, batch, model.device).double().cpu().numpy()  # [n]
            sequence_of_label = np.asarray(members)[batch.sequence_index.numpy()]  # [n]
            np.subtract.at(logps, sequence_of_label, losses)
            np.add.at(tokens, sequence_of_label, 1)
            done += len(members)
            report_done(done)
    compute_loss.detach_from_model()
    return ModelOutputs(logps, tokens)
