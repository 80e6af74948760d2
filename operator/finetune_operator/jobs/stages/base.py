"""What a stage that runs in pods defines: its configuration, its pods, and what its result means.

A stage never touches the cluster or the status. When to launch it, and what to do about a failed
attempt, is the same for all of them: see stage_runner.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus, Phase
from finetune_api.protocol import StageName
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from finetune_api.train_plan import TrainPlan

from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.resources.pod import StagePods
from finetune_operator.stalled import Stalled


def planned_profile(ctx: Context, plan: TrainPlan | None) -> str | None:
    """The name of the profile that the job trains with; None for the default profile."""
    return plan.profile if plan else ctx.spec.compute.profile


@dataclass(frozen=True)
class Accepted:
    """What a stage's result adds to the status of the job."""

    facts: Mapping[str, Any]
    """Fields of FineTuneJobStatus."""
    message: str
    refusal: Failure | None = None
    """Why the job ends here although the stage did its work."""


@dataclass(frozen=True)
class PodStage:
    """A stage that runs in pods."""

    name: StageName
    phase: Callable[[Attempt | None], Phase]
    """Phase of the job while this attempt runs; None before the first one."""
    build_config: Callable[[Context, FineTuneJobStatus, int], RunConfig | Stalled | Failure]
    """The run.json of an attempt."""
    build_pods: Callable[[Context, FineTuneJobStatus, RunConfig], StagePods | Stalled]
    """The size of its pods and what they mount."""
    accept: Callable[[Context, StageResult], Accepted | None]
    """What a result means; None where it lacks the facts that the stage is for."""
