"""StageResult: the termination message of a pod, at most 4096 bytes.

Anything larger is a file in the workspace, which the StageResult names with its SHA-256. The exit
code (protocol) is typed, so that the operator can distinguish a user's error from a crash without
reading logs.
"""

from typing import Literal

from pydantic import Field

from finetune_api.base import ShortText, StatusModel
from finetune_api.evaluation_summary import EvaluationSummary, ProbeRecord
from finetune_api.facts import ArtifactRef, DataFacts, ModelFacts, TrainFacts, WorkspaceFacts
from finetune_api.failure import Failure
from finetune_api.protocol import Digest, StageName


class StageResult(StatusModel):
    """Result of a stage: the termination message of its pod."""

    stage: StageName
    """Stage that ran."""
    attempt: int = Field(ge=1)
    """Number of the attempt, counted from 1."""
    outcome: Literal["Succeeded", "Failed", "Preempted"]
    """How the stage ended."""
    failure: Failure | None = None
    """Why the stage failed."""
    model: ModelFacts | None = None
    """From prepare."""
    data: DataFacts | None = None
    """From prepare."""
    reward: ModelFacts | None = None
    """From prepare, about grpo.rewardModel."""
    workspace: WorkspaceFacts | None = None
    """From prepare."""
    train: TrainFacts | None = None
    """From train, written by the pod with index 0."""
    evaluation: EvaluationSummary | None = None
    """From evaluate."""
    probe: ProbeRecord | None = None
    """From evaluate."""
    artifact: ArtifactRef | None = None
    """From export."""
    report: ShortText | None = None
    """File with the full report, relative to the job's folder."""
    report_digest: Digest | None = None
    """SHA-256 of the report."""
