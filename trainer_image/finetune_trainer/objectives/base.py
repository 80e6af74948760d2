"""What every objective offers to the loop, and what it is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RunConfig, TrainPlan

from finetune_trainer.strategies import TrainingStrategy


@dataclass(frozen=True)
class ObjectiveContext:
    """Where an objective works."""

    run: RunConfig
    spec: FineTuneJobSpec
    plan: TrainPlan
    device: torch.device
    flatten: bool
    """Whether a batch is one long row: the attention kernel reads borders from positions."""

    @property
    def job(self) -> Path:
        """The job's folder."""
        return Path(self.run.paths.job)


@dataclass(frozen=True)
class RankBatch:
    """What this rank does in one step; every rank has as many batches."""

    batches: list[Any]
    weight: int
    """Losses in the global batch: trained tokens, pairs or answers, by objective."""
    tokens: int
    """Tokens in the global batch without padding."""


@dataclass(frozen=True)
class Losses:
    """What a forward pass gives."""

    each: torch.Tensor
    """fp32 [k]: summed over all ranks and divided by the share's weight they are the loss."""
    penalty: torch.Tensor | None = None
    """A mean that is added, such as the load-balancing loss of a router; fp32 scalar."""


class Objective(Protocol):
    """A way to learn."""

    MEASURES: tuple[str, ...]
    """Names of what is measured besides the loss, by TRL's names."""

    def begin(self, engine: TrainingStrategy) -> None:
        """Called once with the untrained model, before a checkpoint's weights take its place. A
        collective. Raises UserError where model and data do not go together."""

    def share(self, step: int) -> RankBatch:
        """This rank's part of a step, counted from 1. A collective."""

    def held_out(self) -> RankBatch:
        """This rank's part of the held-out data."""

    def losses(self, model: Any, batch: Any) -> Losses:
        """Forward pass of one batch."""

    def measures(self) -> torch.Tensor:
        """Sums of MEASURES on this rank since the last call, float64 [len(MEASURES)]; divided by
        the share's weight they are means."""

    def remove(self) -> None:
        """Give the model its ordinary forward pass back."""
