"""TODO."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.finetunejob import FineTuneJobStatus, Phase
from finetune_api.run import Failure, RunConfig, StageName, StageResult

from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.resources.pod import PodShape
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class Accepted:
    """What a successful result adds to the status."""

    status: FineTuneJobStatus
    message: str
    refusal: Failure | None = None
    """Why the job ends here although the stage did its work."""


@dataclass(frozen=True)
class PodStage:
    """A stage that runs in pods."""

    name: StageName
    phase: Callable[[Attempt | None], Phase]
    """Phase of the job while this attempt runs; None before there is one."""
    config: Callable[[Context, FineTuneJobStatus, int], RunConfig | Stalled | Failure]
    """What an attempt is given."""
    shape: Callable[[Context, FineTuneJobStatus, RunConfig], PodShape | Stalled]
    """How large its pods are and what they see."""
    accept: Callable[[Context, FineTuneJobStatus, StageResult], Accepted | None]
    """What a result means; None where it lacks what the stage is for."""
