"""KTO: single answers that are desirable or not, weighed as people weigh gains and losses.

Gains are counted from a reference point: how far the model has moved from the untrained one on
answers that do not belong to their prompts, over the whole global batch. Which answer goes with
which foreign prompt is fixed for the run, so its reference log-probabilities are computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_api import finetunejob
from torch import distributed as dist

from finetune_trainer.data import sampler
from finetune_trainer.data.token_store import DESIRABLE, IGNORED, PackedSequence, TokenStore
from finetune_trainer.objectives.base import Losses, ObjectiveContext, RankBatch
from finetune_trainer.objectives.collate import MicroBatch, RowBatch, collate
from finetune_trainer.objectives.preference_pairs import Tally
from finetune_trainer.objectives.reference_logprobs import reference_logps
from finetune_trainer.objectives.sequence_logprobs import RowLikelihood, at_rest
from finetune_trainer.strategies import TrainingStrategy


@dataclass
class Divergence:
    """The reference point of one global batch; computed at its first forward pass."""

    batches: list[tuple[MicroBatch, torch.Tensor]]
    """This rank's foreign pairs of prompt and answer, and their reference log-probabilities."""
    answers: int
    """Over all ranks."""
    value: torch.Tensor | None = None


@dataclass(frozen=True)
class RatedBatch(RowBatch):
    """The answers of one forward pass."""

    reference: torch.Tensor
    """fp32 [answers]."""
    desirable: torch.Tensor
    """bool [answers]."""
    divergence: Divergence
    scales: tuple[float, float]
    """All answers of the global batch over the desirable and over the undesirable ones."""


class AnswerStore:
    """The answers of one half of the data."""

    def __init__(self, folder: Path, seed: int, longest: int) -> None:
        self._store = TokenStore.open(folder)
        self._longest = longest
        self.desirable: np.ndarray = np.load(folder / DESIRABLE)
        self.reference = np.zeros(0, dtype=np.float32)
        self.foreign_reference = np.zeros(0, dtype=np.float32)
        order = np.random.default_rng(seed).permutation(self._store.rows)
        # A cycle through all rows: nobody gets their own answer.
        self._partner = np.empty_like(order)
        self._partner[order] = np.roll(order, 1)

    @property
    def answers(self) -> int:
        """How many."""
        return self._store.rows

    def row(self, index: int) -> PackedSequence:
        """Prompt and answer."""
        return self._store.row(index)

    def foreign(self, index: int) -> PackedSequence:
        """The same prompt with the answer to another one, cut where it is too long."""
        return foreign_row(self.row(index), self.row(int(self._partner[index])), self._longest)


def foreign_row(prompted: PackedSequence, answered: PackedSequence, longest: int) -> PackedSequence:
    """The prompt of one row and the answer of another, of at most `longest` tokens."""
    begin, other = answer_start(prompted), answer_start(answered)
    ids = np.concatenate([prompted.input_ids[:begin], answered.input_ids[other:]])[:longest]
    labels = np.concatenate([prompted.labels[:begin], answered.labels[other:]])[:longest]
    return PackedSequence(ids, labels, np.arange(len(ids), dtype=np.int32))


def answer_start(row: PackedSequence) -> int:
    """Position of the first learnt token; the length where there is none."""
    learnt = np.flatnonzero(row.labels != IGNORED)
    return int(learnt[0]) if len(learnt) else len(row.labels)


class KTOObjective:
    """Mean loss of the answers of the global batch."""

    MEASURES: tuple[str, ...] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "kl",
    )

    def __init__(self, model: Any, setting: ObjectiveContext) -> None:
        self._setting = setting
        self._settings = setting.spec.kto or finetunejob.KTO()
        training = setting.spec.training
        self._train, self._held_out = (
            AnswerStore(setting.job / "data" / half, training.seed, training.max_sequence_length)
            for half in ("train", "eval")
        )
        self._likelihood = RowLikelihood(model, setting.device)
        self._tally = Tally(len(self.MEASURES))

    def begin(self, engine: TrainingStrategy) -> None:
        """Take down what the untrained model thinks of the answers to come, and of foreign ones."""
        setting, plan = self._setting, self._setting.plan
        seed = setting.spec.training.seed
        wanted = {
            "train": sampler.units_until(
                self._train.answers, plan.total_steps, plan.batch_size, seed
            ),
            "eval": self._judged(),
        }
        for name, store in (("train", self._train), ("eval", self._held_out)):
            store.reference, store.foreign_reference = (
                reference_logps(label, rows, wanted[name], setting, engine, self._likelihood)
                for label, rows in ((name, store.row), (f"{name}-foreign", store.foreign))
            )

    def share(self, step: int) -> RankBatch:
        """This rank's answers of a step."""
        plan, seed = self._setting.plan, self._setting.spec.training.seed
        numbers = sampler.units_of(self._train.answers, step, plan.batch_size, seed)
        return self._share(self._train, numbers)

    def held_out(self) -> RankBatch:
        """This rank's held-out answers."""
        return self._share(self._held_out, self._judged())

    def _judged(self) -> list[int]:
        return list(range(min(self._setting.spec.evaluation.max_samples, self._held_out.answers)))

    def _share(self, store: AnswerStore, numbers: Sequence[int]) -> RankBatch:
        size, flatten = self._setting.plan.micro_batch_size, self._setting.flatten
        order = sorted(numbers, key=lambda i: -len(store.row(i).input_ids))
        divergence = Divergence(
            [
                (
                    collate([store.foreign(i) for i in members], flatten),
                    torch.from_numpy(store.foreign_reference[members]),
                )
                for members in sampler.deal(order, size)
            ],
            len(order),
        )
        good = int(store.desirable[list(order)].sum())
        scales = (len(order) / max(1, good), len(order) / max(1, len(order) - good))
        batches = [
            RatedBatch(
                rows=collate([store.row(i) for i in members], flatten),
                reference=torch.from_numpy(store.reference[members]),
                desirable=torch.from_numpy(store.desirable[members]),
                divergence=divergence,
                scales=scales,
            )
            for members in sampler.deal(order, size)
        ]
        tokens = sum(len(store.row(i).input_ids) for i in order)
        return RankBatch(batches, max(1, len(order)), tokens)

    def losses(self, model: Any, batch: RatedBatch) -> Losses:
        """One loss for every answer. A collective at the first batch of a share."""
        point = self._point(model, batch.divergence)
        logps = self._likelihood(model, batch.rows, len(batch.reference)).logps
        reference, desirable = (t.to(logps.device) for t in (batch.reference, batch.desirable))
        rewards = self._settings.beta * (logps - reference)
        self._tally.add(answer_measures(rewards, logps, desirable, point, batch.scales))
        return Losses(kto_losses(self._settings, logps, reference, desirable, point))

    def _point(self, model: Any, divergence: Divergence) -> torch.Tensor:
        if divergence.value is None:
            total = torch.zeros((), dtype=torch.float64, device=self._setting.device)
            with at_rest(model):
                for rows, reference in divergence.batches:
                    logps = self._likelihood(model, rows, len(reference)).logps
                    total += (logps - reference.to(logps.device)).double().sum()
            dist.all_reduce(total)
            divergence.value = reference_point(total / max(1, divergence.answers))
        return divergence.value

    def measures(self) -> torch.Tensor:
        """Sums of MEASURES."""
        return self._tally.take()

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._likelihood.remove()


def reference_point(mean_ratio: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(model || reference) in nats, not below zero: z0 (Ethayarajh et al. 2024, arXiv
    2402.01306, section 4.1) from the mean log-ratio of foreign answers."""
    return mean_ratio.clamp(min=0).detach()


def kto_losses(
    settings: finetunejob.KTO,
    logps: torch.Tensor,
    reference: torch.Tensor,
    desirable: torch.Tensor,
    point: torch.Tensor,
) -> torch.Tensor:
    """Loss of each answer [answers]: w (1 - s(b (ratio - z0))) where it is desirable, else
    w (1 - s(b (z0 - ratio))) (Ethayarajh et al. 2024, eq. 7 and 8; the constant lambda is left
    out)."""
    gain = settings.beta * (logps - reference - point.to(logps.dtype))
    good = settings.desirable_weight * (1 - torch.sigmoid(gain))
    bad = settings.undesirable_weight * (1 - torch.sigmoid(-gain))
    return torch.where(desirable, good, bad)


def answer_measures(
    rewards: torch.Tensor,
    logps: torch.Tensor,
    desirable: torch.Tensor,
    point: torch.Tensor,
    scales: tuple[float, float],
) -> torch.Tensor:
    """Sums of KahnemanTversky.MEASURES, float64 [6].

    A mean is taken over all answers, so what belongs to some of them is scaled up.
    """
    rewards, logps = rewards.detach().double(), logps.detach().double()
    good = desirable.double() * scales[0]
    bad = (~desirable).double() * scales[1]
    sums = [
        (rewards * good).sum(),
        (rewards * bad).sum(),
        (rewards * (good - bad)).sum(),
        (logps * good).sum(),
        (logps * bad).sum(),
        point * len(logps),
    ]
    return torch.stack(sums)
