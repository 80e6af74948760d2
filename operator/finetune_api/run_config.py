"""RunConfig: the immutable run.json of one attempt, the input of its stage."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self, TypeVar

from pydantic import Field

from finetune_api.artifact_retention import ArtifactRetention
from finetune_api.base import StatusModel
from finetune_api.evaluation_summary import EvaluationSummary
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.jobspec import FineTuneJobSpec
from finetune_api.protocol import StageName
from finetune_api.train_plan import TrainPlan

T = TypeVar("T")


class Paths(StatusModel):
    """Absolute folders inside the pod."""

    model_cache: str = "/workspace/model"
    """Cache entry of the base model: one folder for each snapshot; read-only after prepare."""
    job: str = "/workspace/job"
    """The job's own files: data/, checkpoints/, output/, report/, claims/."""
    artifact: str = "/workspace/artifact"
    """Folder that export writes the artifact to."""
    reward_cache: str = "/workspace/reward"
    """Cache entry of grpo.rewardModel, laid out like model_cache; mounted only for a job that
    names one."""
    volumes: str = "/pvc"
    """Folder below which the claims of pvc:// sources are mounted, by name."""


class JobRef(StatusModel):
    """The job that an attempt belongs to."""

    name: str
    """metadata.name."""
    namespace: str
    """metadata.namespace."""
    uid: str
    """metadata.uid."""


class RunConfig(StatusModel):
    """Input of a stage: the run.json of one attempt."""

    version: Literal[1] = 1
    """Version of this format."""
    job: JobRef
    """The job that the attempt belongs to."""
    stage: StageName
    """Stage that runs."""
    attempt: int = Field(ge=1)
    """Number of the attempt, counted from 1."""
    raw_spec: dict[str, Any] = Field(alias="spec")
    """The FineTuneJob's spec as the API server stored it. It stays as it is, so that a run.json
    keeps its bytes, and one whose spec is of another version of the operator can be read."""
    plan: TrainPlan | None = None
    """What the planner chose; absent for prepare."""
    model: ModelFacts | None = None
    """What prepare reported about the model; absent for prepare."""
    data: DataFacts | None = None
    """What prepare reported about the data; absent for prepare."""
    reward: ModelFacts | None = None
    """What prepare reported about grpo.rewardModel, whose snapshot is in paths.reward_cache."""
    evaluation: EvaluationSummary | None = None
    """Result of evaluate; only for export."""
    artifact_uri: str | None = None
    """pvc:// address that the artifact will have; only for export."""
    artifact_retention: ArtifactRetention | None = None
    """How long the artifact stays once nothing refers to it; only for export, and absent where
    that is Always."""
    paths: Paths = Field(default_factory=Paths)
    """Folders inside the pod."""
    master_host: str | None = None
    """Host name of the pod with index 0; only for train."""

    @cached_property
    def spec(self) -> FineTuneJobSpec:
        """The spec with its defaults. Raises ValidationError for a spec of another version."""
        return FineTuneJobSpec.model_validate(self.raw_spec)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, which may have another `raw_spec` and therefore another `spec`."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("spec", None)
        return copy

    def require_plan(self) -> TrainPlan:
        """The plan. Raises ValueError where run.json has none."""
        return self._require("plan", self.plan)

    def require_model(self) -> ModelFacts:
        """The facts about the model. Raises ValueError where run.json has none."""
        return self._require("model", self.model)

    def require_data(self) -> DataFacts:
        """The facts about the data. Raises ValueError where run.json has none."""
        return self._require("data", self.data)

    def require_reward(self) -> ModelFacts:
        """The facts about the reward model. Raises ValueError where run.json has none."""
        return self._require("reward", self.reward)

    def _require(self, name: str, value: T | None) -> T:
        if value is None:
            raise ValueError(f"run.json of {self.stage}, attempt {self.attempt}, has no {name}")
        return value
