"""What a decision about a job depends on (Context), and the decision while it is made (Draft).

Only plan.py and stage_runner.py change a Draft. Stages and policies read a Context and a status,
and return values.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus, StageStatus
from finetune_api.jobspec import FineTuneJobSpec
from finetune_api.protocol import StageName
from finetune_api.run_config import JobRef, RunConfig

from finetune_operator.decision import EventQuery, HttpRequest, Manifest, ObjectRef, Settings, View
from finetune_operator.jobs.observe import Observed
from finetune_operator.stalled import Stalled

MESSAGE_LIMIT = 4096
"""Characters of a message in the status."""


@dataclass(frozen=True)
class Context:
    """All that a decision about a job may depend on, apart from its status."""

    job: Manifest
    spec: FineTuneJobSpec
    observed: Observed
    view: View
    settings: Settings
    now: datetime
    timestamp: str
    """`now` in RFC 3339."""
    namespace: str = field(init=False)
    """Namespace of the job and of everything that it names."""
    name: str = field(init=False)
    uid: str = field(init=False)

    def __post_init__(self) -> None:
        metadata = self.job["metadata"]
        for name in ("namespace", "name", "uid"):
            object.__setattr__(self, name, metadata[name])

    def run_config(self, stage: StageName, attempt: int, **facts: Any) -> RunConfig:
        """The run.json of an attempt of this job."""
        job = JobRef(name=self.name, namespace=self.namespace, uid=self.uid)
        return RunConfig(job=job, stage=stage, attempt=attempt, raw_spec=self.job["spec"], **facts)


@dataclass
class Draft:
    """A decision while it is made."""

    status: FineTuneJobStatus
    stalled: Stalled | None = None
    create: list[Manifest] = field(default_factory=list)
    delete: list[ObjectRef] = field(default_factory=list)
    requests: list[HttpRequest | EventQuery] = field(default_factory=list)
    requeue_after: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether this decision ends the job."""
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

    def show(self, stage: StageName, message: str) -> None:
        """Set the message of the job and of the stage."""
        self.update(message=message[:MESSAGE_LIMIT])
        self.update_stage(stage, message=message[:MESSAGE_LIMIT])

    def requeue_within(self, seconds: float) -> None:
        """Reconcile again in `seconds` at the latest."""
        seconds = max(0.1, seconds)
        self.requeue_after = min(self.requeue_after or seconds, seconds)

    def fail(self, stage: StageName, failure: Failure) -> None:
        """End the job because of this stage."""
        failure = failure.model_copy(update={"stage": failure.stage or stage})
        text = f"{stage}: {failure.message}"
        if failure.remedy:
            # A message that ends with a table keeps its last line.
            separator = "\n" if "\n" in failure.message else " "
            text += f"{separator}({failure.remedy})"
        self.update(phase="Failed", failure=failure, message=text[:MESSAGE_LIMIT])
        self.update_stage(stage, state="Failed", message=failure.message)
