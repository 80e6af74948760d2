"""What a stage is: how it is configured, how large it is, and what its result means.

A stage never touches the cluster. It answers three questions; when to ask them, and what to do
about a failed attempt, is the same for all of them and stands in attempts.py.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus, StageStatus
from finetune_api.run import Failure, JobRef, RunConfig, StageName

from finetune_operator.decision import HttpRequest, Manifest, ObjectRef, Settings, View
from finetune_operator.jobs.observe import Observed
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class Context:
    """All that a decision about a job may depend on."""

    job: Manifest
    spec: FineTuneJobSpec
    observed: Observed
    view: View
    settings: Settings
    now: datetime

    @property
    def namespace(self) -> str:
        """Namespace of the job and of everything that it names."""
        return str(self.job["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Name of the job."""
        return str(self.job["metadata"]["name"])

    @property
    def uid(self) -> str:
        """uid of the job."""
        return str(self.job["metadata"]["uid"])

    def run_config(self, stage: StageName, attempt: int, **facts: Any) -> RunConfig:
        """A RunConfig of this job."""
        job = JobRef(name=self.name, namespace=self.namespace, uid=self.uid)
        return RunConfig(job=job, stage=stage, attempt=attempt, raw_spec=self.job["spec"], **facts)


@dataclass
class Draft:
    """A decision while it is being made."""

    status: FineTuneJobStatus
    stall: Stalled | None = None
    create: list[Manifest] = field(default_factory=list)
    apply: list[Manifest] = field(default_factory=list)
    delete: list[ObjectRef] = field(default_factory=list)
    requests: list[HttpRequest] = field(default_factory=list)
    requeue: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the job is over by this decision."""
        return self.status.phase in ("Succeeded", "Failed")

    def update(self, **changes: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=changes)

    def stage(self, name: StageName) -> StageStatus:
        """The status of one stage."""
        return next(stage for stage in self.status.stages if stage.name == name)

    def update_stage(self, name: StageName, **changes: Any) -> None:
        """Change fields of one stage's status."""
        stages = [
            stage.model_copy(update=changes) if stage.name == name else stage
            for stage in self.status.stages
        ]
        self.update(stages=stages)

    def wake(self, seconds: float) -> None:
        """Look again in so many seconds at the latest."""
        seconds = max(0.1, seconds)
        self.requeue = seconds if self.requeue is None else min(self.requeue, seconds)

    def fail(self, stage: StageName, failure: Failure) -> None:
        """End the job."""
        failure = failure.model_copy(update={"stage": failure.stage or stage})
        text = f"{stage}: {failure.message}"
        if failure.remedy:
            text += f" ({failure.remedy})"
        self.update(phase="Failed", failure=failure, message=text[:4096])
        self.update_stage(stage, state="Failed", message=failure.message)
