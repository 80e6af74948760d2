"""What the children of one attempt of a FineTuneJob have in common: name, labels, owner."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_api.run import StageName

from finetune_operator.decision import (
    ATTEMPT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    STAGE_LABEL,
    Manifest,
)
from finetune_operator.names import child_name
from finetune_operator.resources.metadata import build_labels, build_owner_reference


@dataclass(frozen=True)
class AttemptMetadata:
    """One attempt of one stage of one job."""

    job: Manifest
    """The FineTuneJob as the API server returned it."""
    stage: StageName
    attempt: int

    @cached_property
    def name(self) -> str:
        """Name of every child of this attempt."""
        return child_name(self.job["metadata"]["name"], self.stage, self.attempt)

    @property
    def selector(self) -> dict[str, str]:
        """Labels that only the pods of this attempt have."""
        return {
            JOB_UID_LABEL: self.job["metadata"]["uid"],
            STAGE_LABEL: self.stage,
            ATTEMPT_LABEL: str(self.attempt),
        }

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every child and pod."""
        return build_labels({JOB_NAME_LABEL: self.job["metadata"]["name"], **self.selector})

    def to_manifest(self) -> dict[str, Any]:
        """The metadata of a child that the job owns."""
        return {
            "name": self.name,
            "namespace": self.job["metadata"]["namespace"],
            "labels": self.labels,
            "ownerReferences": [build_owner_reference(self.job)],
        }
