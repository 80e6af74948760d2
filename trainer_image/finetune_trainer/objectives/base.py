"""The interface between an objective and the training loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig
from finetune_api.train_plan import TrainPlan

from finetune_trainer.strategies import TrainingStrategy


@dataclass(frozen=True)
class ObjectiveContext:
    """What every objective is constructed with."""

    run: RunConfig
    plan: TrainPlan
    device: torch.device
    flatten: bool
    """Whether a micro-batch is one long sequence; needs an attention kernel that finds the borders
    of samples from the position ids."""

    @property
    def spec(self) -> FineTuneJobSpec:
        """The job's spec with its defaults."""
        return self.run.spec

    @property
    def job(self) -> Path:
        """The job's folder in the workspace."""
        return Path(self.run.paths.job)


@dataclass(frozen=True)
class RankBatch:
    """This rank's part of a global batch."""

    micro_batches: list[Any]
    """Every rank has the same number of them; some may hold no sequence."""
    num_items_in_batch: int
    """Number of losses in the global batch (trained tokens, pairs or completions, depending on the
    objective), as transformers names it: the sum of the losses of all ranks divided by it is the
    loss of the step."""
    tokens: int
    """Tokens in the global batch without padding."""


@dataclass(frozen=True)
class LossTerms:
    """The result of one forward pass."""

    per_item: torch.Tensor
    """fp32 [k]: one loss for each trained token, pair or completion; see
    `RankBatch.num_items_in_batch`."""
    auxiliary: torch.Tensor | None = None
    """fp32 scalar: a mean that is added to the loss, such as the load-balancing loss of routers."""


class Objective(Protocol):
    """Turns the data of a job into losses of a model."""

    METRICS: tuple[str, ...]
    """Names of what is measured besides the loss, by TRL's names."""

    def inspect_untrained_model(self, strategy: TrainingStrategy) -> None:
        """Compute what depends on the untrained model, such as reference logps.

        The loop calls it once, before the weights of a checkpoint are restored. A collective.
        Raises UserError if the model cannot be trained on the job's data.
        """

    def make_rank_batch(self, step: int) -> RankBatch:
        """This rank's part of a step, counted from 1. A collective."""

    def make_held_out_batch(self) -> RankBatch:
        """This rank's part of the held-out data."""

    def compute_losses(self, model: Any, micro_batch: Any) -> LossTerms:
        """Forward pass of one micro-batch; `model` is the wrapped model of the strategy."""

    def take_metrics(self) -> torch.Tensor:
        """Sums of METRICS on this rank since the last call, float64 [len(METRICS)]; summed over
        ranks and divided by `num_items_in_batch` they are means."""

    def detach_from_model(self) -> None:
        """Remove hooks and restore the model's ordinary forward pass."""
