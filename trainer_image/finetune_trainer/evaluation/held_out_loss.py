"""What a model makes of the held-out data, by the loss that it was trained with.

A model only gives log-probabilities of answers, or scores; every loss follows from these without
another look at the model. So the base is looked at once, and is its own reference and the tuned
model's: the loss of the base is then that of a model which has learnt nothing, ln 2 for DPO.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from finetune_api import finetunejob
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_trainer.data.token_store import PackedSequence, TokenStore
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.dpo import dpo_losses
from finetune_trainer.objectives.kto import UnpairedPreferenceStore, kto_losses, estimate_kl
from finetune_trainer.objectives.orpo import orpo_losses, average_logps
from finetune_trainer.objectives.preference_pairs import sequence_indices
from finetune_trainer.objectives.reward import collate_scores, reward_losses, compute_scores
from finetune_trainer.objectives.sft import OutputHeadLoss

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
Tell = Callable[[int], None]


@dataclass(frozen=True)
class ModelOutputs:
    """What one model made of the held-out rows."""

    values: np.ndarray
    """float64 [rows]: log p(answer | prompt) in nats, or the score of a reward model."""
    tokens: np.ndarray
    """int64 [rows]: tokens that were learnt from, or for a score all of the row."""


@dataclass(frozen=True)
class HeldOutLosses:
    """The objective's loss of every unit; the loss of all is sum(each) / sum(weights)."""

    each: np.ndarray
    """float64 [units]."""
    weights: np.ndarray
    """int64 [units]: tokens of a row, one for a pair or an answer."""


class HeldOutSet(Protocol):
    """The held-out part of one objective's data."""

    units: np.ndarray
    """int64 [units]: which of the held-out rows, pairs or answers are looked at."""
    items: int
    """Rows that a look goes through."""

    def look(self, model: Any, tell: Tell) -> ModelOutputs:
        """Show the model every row."""

    def loss(self, look: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """The loss of a model whose reference is the base."""

    def accuracy(self, look: ModelOutputs) -> float | None:
        """Share of pairs whose better answer is preferred, 0 to 1."""


def open_held_out(spec: FineTuneJobSpec, folder: Path) -> HeldOutSet | None:
    """The held-out data of an objective in the token store `folder`; GRPO has no held-out loss."""
    match spec.objective:
        case "GRPO":
            return None
        case "SFT" | "Completion":
            return HeldOutTokens(spec, folder)
        case "KTO":
            return HeldOutAnswers(spec, folder)
        case "Reward":
            return HeldOutScores(spec, folder)
        case _:
            return HeldOutPairs(spec, folder)


class HeldOutTokens:
    """SFT and Completion: negative log-likelihood of tokens."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        store = TokenStore.open(folder)
        self.units = choose_indices(spec, store.sequence_count)
        self._rows = [store.sequence(int(unit)) for unit in self.units]
        self.items = len(self._rows)

    def look(self, model: Any, tell: Tell) -> ModelOutputs:
        """Log-probabilities of what was learnt of each row."""
        return compute_logps(model, self._rows, tell)

    def loss(self, look: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """Nats; weighted by tokens."""
        return HeldOutLosses(-look.values, look.tokens)

    def accuracy(self, look: ModelOutputs) -> float | None:
        """There are no pairs."""
        return None


class HeldOutPairs:
    """DPO and ORPO: pairs of answers."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        self._spec = spec
        store = TokenStore.open(folder)
        self.units = choose_indices(spec, store.sequence_count // 2)
        self._rows = [store.sequence(number) for number in sequence_indices([int(u) for u in self.units])]
        self.items = len(self._rows)

    def look(self, model: Any, tell: Tell) -> ModelOutputs:
        """Log-probabilities of both answers."""
        return compute_logps(model, self._rows, tell)

    def loss(self, look: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """One for every pair."""
        logps, tokens, reference = (
            torch.from_numpy(array).double().view(-1, 2)
            for array in (look.values, look.tokens, base.values)
        )
        if self._spec.objective == "ORPO":
            settings = self._spec.orpo or finetunejob.ORPO()
            return weigh_equally(orpo_losses(settings, average_logps(logps, tokens)))
        dpo = self._spec.dpo or finetunejob.DPO()
        return weigh_equally(dpo_losses(dpo, logps, reference, tokens))

    def accuracy(self, look: ModelOutputs) -> float | None:
        """By log-probability, for ORPO per token."""
        by_token = self._spec.objective == "ORPO"
        values = look.values / np.maximum(1, look.tokens) if by_token else look.values
        return preference_accuracy(values)


class HeldOutScores:
    """Reward: scores of pairs."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        self._settings = spec.reward or finetunejob.Reward()
        store = TokenStore.open(folder)
        self.units = choose_indices(spec, store.sequence_count // 2)
        self._rows = [store.sequence(number) for number in sequence_indices([int(u) for u in self.units])]
        self.items = len(self._rows)

    def look(self, model: Any, tell: Tell) -> ModelOutputs:
        """Scores of both answers."""
        scores = np.zeros(len(self._rows))
        tokens = np.array([len(row.input_ids) for row in self._rows], dtype=np.int64)
        pad, done = int(model.config.get_text_config().pad_token_id), 0
        with torch.no_grad():
            for members in group_by_length(tokens.tolist(), model.device.type):
                batch = collate_scores([self._rows[index] for index in members], pad)
                scores[members] = compute_scores(model, batch, model.device).double().cpu().numpy()
                done += len(members)
                tell(done)
        return ModelOutputs(scores, tokens)

    def loss(self, look: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """One for every pair."""
        scores = torch.from_numpy(look.values).view(-1, 2)
        return weigh_equally(reward_losses(self._settings, scores))

    def accuracy(self, look: ModelOutputs) -> float | None:
        """By score; the base has the head that training began from."""
        return preference_accuracy(look.values)


class HeldOutAnswers:
    """KTO: single answers, and the same prompts with foreign answers for the reference point."""

    def __init__(self, spec: FineTuneJobSpec, folder: Path) -> None:
        self._settings = spec.kto or finetunejob.KTO()
        training = spec.training
        store = UnpairedPreferenceStore(folder, training.seed, training.max_sequence_length)
        self.units = choose_indices(spec, store.completion_count)
        numbers = [int(unit) for unit in self.units]
        self._desirable = np.asarray(store.is_desirable[numbers], dtype=bool)
        self._rows = [store.sequence(i) for i in numbers] + [store.mismatched_sequence(i) for i in numbers]
        self.items = len(self._rows)

    def look(self, model: Any, tell: Tell) -> ModelOutputs:
        """Log-probabilities of all answers, then of the foreign ones."""
        return compute_logps(model, self._rows, tell)

    def loss(self, look: ModelOutputs, base: ModelOutputs) -> HeldOutLosses:
        """One for every answer."""
        count = len(self.units)
        values, reference = torch.from_numpy(look.values), torch.from_numpy(base.values)
        point = estimate_kl((values - reference)[count:].mean())
        desirable = torch.from_numpy(self._desirable)
        each = kto_losses(self._settings, values[:count], reference[:count], desirable, point)
        return weigh_equally(each)

    def accuracy(self, look: ModelOutputs) -> float | None:
        """Over all pairs of a desirable and an undesirable answer, by log-probability per token:
        their prompts and lengths differ."""
        means = (look.values / np.maximum(1, look.tokens))[: len(self.units)]
        good, bad = means[self._desirable], means[~self._desirable]
        if not len(good) or not len(bad):
            return None
        return float((good[:, None] > bad[None, :]).mean())


def choose_indices(spec: FineTuneJobSpec, units: int) -> np.ndarray:
    """Which units are looked at, in an order that follows from the seed."""
    order = np.random.default_rng(spec.training.seed).permutation(units)
    return order[: spec.evaluation.max_samples]


def weigh_equally(each: torch.Tensor) -> HeldOutLosses:
    """Every unit counts as one."""
    return HeldOutLosses(each.numpy(), np.ones(len(each), dtype=np.int64))


def preference_accuracy(values: np.ndarray) -> float | None:
    """Share of pairs whose first value is the larger one."""
    both = values.reshape(-1, 2)
    return float((both[:, 0] > both[:, 1]).mean()) if len(both) else None


def compute_logps(model: Any, rows: Sequence[PackedSequence], tell: Tell) -> ModelOutputs:
    """Log-probability of what was learnt of each row, and how many tokens that is."""
    loss_of = OutputHeadLoss(model)
    logps, tokens = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    done = 0
    with torch.no_grad():
        for members in group_by_length([len(row.input_ids) for row in rows], model.device.type):
            batch = collate([rows[index] for index in members])
            each = loss_of(model, batch, model.device).double().cpu().numpy()
            indices = np.asarray(members)[batch.sequence_index.numpy()]
            np.subtract.at(logps, indices, each)
            np.add.at(tokens, indices, 1)
            done += len(members)
            tell(done)
    loss_of.detach_from_model()
    return ModelOutputs(logps, tokens)


def group_by_length(lengths: Sequence[int], device: str) -> list[list[int]]:
    """Indices of rows of similar length, in batches that with padding fit a token budget."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > TOKENS_PER_BATCH[device]:
            batches.append([])
        batches[-1].append(index)
    return batches
