"""KTO: single completions, desirable or not, weighted as people weigh gains and losses.

A gain is counted from a reference point z0, an estimate of the KL divergence of the model from the
untrained one. It is measured on mismatched completions, which belong to another prompt, over the
whole global batch. Which completion is paired with which prompt is fixed for the run, so their
reference logps are computed once.
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
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext, RankBatch
from finetune_trainer.objectives.collate import MicroBatch, ObjectiveBatch, collate
from finetune_trainer.objectives.preference_pairs import MetricSums
from finetune_trainer.objectives.reference_logprobs import load_or_compute_reference_logps
from finetune_trainer.objectives.sequence_logprobs import SequenceLogpsHook, evaluation_mode
from finetune_trainer.strategies import TrainingStrategy


@dataclass
class KLEstimate:
    """The reference point of one global batch; computed with its first forward pass."""

    micro_batches: list[tuple[MicroBatch, torch.Tensor]]
    """This rank's mismatched sequences, and their reference logps, fp32 [sequences]."""
    completions: int
    """Over all ranks."""
    value: torch.Tensor | None = None
    """float64 scalar in nats."""


@dataclass(frozen=True)
class UnpairedPreferenceBatch(ObjectiveBatch):
    """The completions of one forward pass."""

    reference_logps: torch.Tensor
    """fp32 [completions]."""
    is_desirable: torch.Tensor
    """bool [completions]."""
    kl: KLEstimate
    """Shared by all micro-batches of a global batch."""
    scales: tuple[float, float]
    """Completions of the global batch per desirable one, and per undesirable one."""


class UnpairedPreferenceStore:
    """The completions of one split, "train" or "eval", each with the prompt before it."""

    def __init__(self, folder: Path, seed: int, max_length: int) -> None:
        self._store = TokenStore.open(folder)
        self._max_length = max_length
        self.is_desirable: np.ndarray = np.load(folder / DESIRABLE)
        """bool [completions]."""
        self.reference_logps = np.zeros(0, dtype=np.float32)
        self.mismatched_reference_logps = np.zeros(0, dtype=np.float32)
        order = np.random.default_rng(seed).permutation(self._store.sequence_count)
        # One cycle through all prompts, so that no prompt is paired with its own completion.
        self._partner = np.empty_like(order)
        self._partner[order] = np.roll(order, 1)

    @property
    def completion_count(self) -> int:
        return self._store.sequence_count

    def sequence(self, index: int) -> PackedSequence:
        """A prompt followed by its own completion, by the index of the completion."""
        return self._store.sequence(index)

    def mismatched_sequence(self, index: int) -> PackedSequence:
        """The same prompt with the completion of another one, cut to the maximum length."""
        partner = self.sequence(int(self._partner[index]))
        return mismatch_completion(self.sequence(index), partner, self._max_length)


def mismatch_completion(
    prompted: PackedSequence, completed: PackedSequence, max_length: int
) -> PackedSequence:
    """The prompt of one sequence and the completion of another, of at most `max_length` tokens."""
    end, start = find_completion_start(prompted), find_completion_start(completed)
    ids = np.concatenate([prompted.input_ids[:end], completed.input_ids[start:]])[:max_length]
    labels = np.concatenate([prompted.labels[:end], completed.labels[start:]])[:max_length]
    return PackedSequence(ids, labels, np.arange(len(ids), dtype=np.int32))


def find_completion_start(sequence: PackedSequence) -> int:
    """Position of the first token with a label; the length if there is none."""
    labelled = np.flatnonzero(sequence.labels != IGNORED)
    return int(labelled[0]) if len(labelled) else len(sequence.labels)


class KTOObjective:
    """Mean loss of the completions of the global batch."""

    METRICS: tuple[str, ...] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "kl",
    )

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        self._context = context
        self._settings = context.spec.kto or finetunejob.KTO()
        training = context.spec.training
        self._train, self._held_out = (
            UnpairedPreferenceStore(
                context.job / "data" / split, training.seed, training.max_sequence_length
            )
            for split in ("train", "eval")
        )
        self._compute_logps = SequenceLogpsHook(model, context.device)
        self._metric_sums = MetricSums(len(self.METRICS))

    def inspect_untrained_model(self, strategy: TrainingStrategy) -> None:
        """Load or compute the reference logps of all completions that are trained or held out, and
        of the mismatched ones."""
        plan, seed = self._context.plan, self._context.spec.training.seed
        trained = sampler.indices_until(
            self._train.completion_count, plan.total_steps, plan.batch_size, seed
        )
        splits = (
            ("train", self._train, trained),
            ("eval", self._held_out, self._held_out_indices()),
        )
        for name, store, indices in splits:
            store.reference_logps, store.mismatched_reference_logps = (
                load_or_compute_reference_logps(
                    file, get_sequence, indices, self._context, strategy, self._compute_logps
                )
                for file, get_sequence in (
                    (name, store.sequence),
                    (f"{name}-foreign", store.mismatched_sequence),
                )
            )

    def make_rank_batch(self, step: int) -> RankBatch:
        plan, seed = self._context.plan, self._context.spec.training.seed
        indices = sampler.step_indices(self._train.completion_count, step, plan.batch_size, seed)
        return self._collate_rank_batch(self._train, indices)

    def make_held_out_batch(self) -> RankBatch:
        return self._collate_rank_batch(self._held_out, self._held_out_indices())

    def _held_out_indices(self) -> list[int]:
        max_samples = self._context.spec.evaluation.max_samples
        return list(range(min(max_samples, self._held_out.completion_count)))

    def _collate_rank_batch(
        self, store: UnpairedPreferenceStore, indices: Sequence[int]
    ) -> RankBatch:
        flatten = self._context.flatten
        order = sorted(indices, key=lambda index: -len(store.sequence(index).input_ids))
        split = sampler.split_into_micro_batches(order, self._context.plan.micro_batch_size)
        kl = KLEstimate(
            [
                (
                    collate([store.mismatched_sequence(index) for index in members], flatten),
                    torch.from_numpy(store.mismatched_reference_logps[members]),
                )
                for members in split
            ],
            len(order),
        )
        desirable = int(store.is_desirable[list(order)].sum())
        scales = (len(order) / max(1, desirable), len(order) / max(1, len(order) - desirable))
        micro_batches = [
            UnpairedPreferenceBatch(
                micro_batch=collate([store.sequence(index) for index in members], flatten),
                reference_logps=torch.from_numpy(store.reference_logps[members]),
                is_desirable=torch.from_numpy(store.is_desirable[members]),
                kl=kl,
                scales=scales,
            )
            for members in split
        ]
        tokens = sum(len(store.sequence(index).input_ids) for index in order)
        return RankBatch(micro_batches, max(1, len(order)), tokens)

    def compute_losses(self, model: Any, micro_batch: UnpairedPreferenceBatch) -> LossTerms:
        """One loss for every completion. A collective for the first micro-batch of a step."""
        kl = self._compute_kl(model, micro_batch.kl)
        completions = len(micro_batch.reference_logps)
        logps = self._compute_logps(model, micro_batch.micro_batch, completions).logps
        reference_logps = micro_batch.reference_logps.to(logps.device)
        is_desirable = micro_batch.is_desirable.to(logps.device)
        rewards = self._settings.beta * (logps - reference_logps)
        self._metric_sums.add(sum_metrics(rewards, logps, is_desirable, kl, micro_batch.scales))
        return LossTerms(kto_losses(self._settings, logps, reference_logps, is_desirable, kl))

    def _compute_kl(self, model: Any, kl: KLEstimate) -> torch.Tensor:
        if kl.value is None:
            total = torch.zeros((), dtype=torch.float64, device=self._context.device)
            with evaluation_mode(model):
                for micro_batch, reference_logps in kl.micro_batches:
                    logps = self._compute_logps(model, micro_batch, len(reference_logps)).logps
                    total += (logps - reference_logps.to(logps.device)).double().sum()
            dist.all_reduce(total)
            kl.value = estimate_reference_point(total / max(1, kl.completions))
        return kl.value

    def take_metrics(self) -> torch.Tensor:
        return self._metric_sums.take()

    def detach_from_model(self) -> None:
        self._compute_logps.detach_from_model()


def estimate_reference_point(mean_log_ratio: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(model || reference) in nats, not below zero: z0 (Ethayarajh et al. 2024, arXiv
    2402.01306, section 4.1) from the mean log-ratio of mismatched completions."""
    return mean_log_ratio.clamp(min=0).detach()


def kto_losses(
    settings: finetunejob.KTO,
    logps: torch.Tensor,
    reference_logps: torch.Tensor,
    is_desirable: torch.Tensor,
    kl: torch.Tensor,
) -> torch.Tensor:
    """Loss of each completion [completions], with z0 = `kl` (a scalar): w (1 - s(b (ratio - z0)))
    if it is desirable, else w (1 - s(b (z0 - ratio))) (Ethayarajh et al. 2024, eq. 7 and 8; the
    constant lambda is left out)."""
    gains = settings.beta * (logps - reference_logps - kl.to(logps.dtype))
    of_desirable = settings.desirable_weight * (1 - torch.sigmoid(gains))
    of_undesirable = settings.undesirable_weight * (1 - torch.sigmoid(-gains))
    return torch.where(is_desirable, of_desirable, of_undesirable)


def sum_metrics(
    rewards: torch.Tensor,
    logps: torch.Tensor,
    is_desirable: torch.Tensor,
    kl: torch.Tensor,
    scales: tuple[float, float],
) -> torch.Tensor:
    """Sums of KTOObjective.METRICS, float64 [6]; the tensors are [completions], `kl` a scalar.

    The loop divides by the number of all completions, so metrics of only the desirable or only the
    undesirable ones are multiplied by `scales`.
    """
    rewards, logps = rewards.detach().double(), logps.detach().double()
    desirable = is_desirable.double() * scales[0]
    undesirable = (~is_desirable).double() * scales[1]
    sums = [
        (rewards * desirable).sum(),
        (rewards * undesirable).sum(),
        (rewards * (desirable - undesirable)).sum(),
        (logps * desirable).sum(),
        (logps * undesirable).sum(),
        kl * len(logps),
    ]
    return torch.stack(sums)
