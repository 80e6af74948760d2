"""The spec of a FineTuneJob: what the user writes.

The smallest job names a model and a data set; every other field has a default that an experienced
practitioner would choose, and status.plan shows what the planner chose. The sections of the spec
have modules of their own; finetune_api.finetunejob exports all of them.
"""

from typing import Literal

from pydantic import Field

from finetune_api.artifact_retention import ArtifactRetention
from finetune_api.base import ChildName, ObjectName, SpecModel, cel, validation_config
from finetune_api.combinations import schema_rules
from finetune_api.dataset import Dataset
from finetune_api.evaluation import Evaluation, objective_rules
from finetune_api.method import Method
from finetune_api.model import ModelSource
from finetune_api.objective import DPO, GRPO, KTO, ORPO, SFT, Objective, Reward, SimPO
from finetune_api.pod_options import PodMetadata, PriorityClassName
from finetune_api.tracking import Tracking
from finetune_api.training import Training


class Compute(SpecModel):
    """Where the job runs; the planner chooses what the user leaves out."""

    profile: ObjectName | None = None
    """AcceleratorProfile of the pool that the job runs on; absent means the profile that is marked
    as default."""
    nodes: int | None = Field(default=None, ge=1, le=1024)
    """Number of nodes, one training pod on each; absent means the fewest that the job fits on, up
    to the profile's maxNodes, and one on a CPU pool."""
    gpus_per_node: int | None = Field(default=None, ge=1, le=64)
    """Devices on each node; on a CPU pool, training processes on each node. Absent means the fewest
    that fit, or whole nodes where nodes is 2 or more."""
    strategy: Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"] = "Auto"
    """How weights, gradients and optimizer states are distributed over the devices; Auto takes the
    strategy that communicates least among those that fit."""
    offload: bool = False
    """Keep optimizer states (ZeRO; with ZeRO-3 the weights too) or all shards (FSDP) in host
    memory: slower, and larger models fit. On a CPU pool it saves nothing."""


class Serve(SpecModel):
    """Where the result is served."""

    endpoint: ChildName
    """Name of the ModelEndpoint in the job's namespace that serves the model as its new revision;
    the job creates it when it does not exist, and never changes one that does."""
    profile: ObjectName | None = None
    """AcceleratorProfile of an endpoint that the job creates; absent means the profile of training.
    An endpoint that exists keeps its own."""


class Export(SpecModel):
    """What becomes of the exported model."""

    retain: ArtifactRetention | None = None
    """How long the artifact stays in the workspace once nothing refers to it any more: neither this
    job, nor a ModelEndpoint, nor a job that starts from it. Always: until a user releases it.
    WhileReferenced: not longer. A number of hours, such as 720h: for that long after the last
    reference is gone. Absent means the installation's default (`workspace.artifactRetention` of the
    chart), which is Always unless the platform team changed it."""


class FineTuneJobSpec(SpecModel):
    """What the job does: model, data, training, evaluation and serving."""

    model_config = validation_config(
        *schema_rules(),
        cel(
            "self.objective != 'GRPO' || has(self.grpo)",
            "objective GRPO needs a reward; set grpo.rewards or grpo.rewardModel",
            ".grpo",
        ),
        cel(
            "self.objective != 'GRPO' || !has(self.grpo) || "
            "self.training.batchSize % self.grpo.generations == 0",
            "with GRPO training.batchSize counts answers; set it to a multiple of grpo.generations",
            ".training.batchSize",
        ),
        *objective_rules(),
    )

    model: ModelSource
    """The base model, and changes to it before training."""
    dataset: Dataset
    """Training data and held-out data."""
    objective: Objective = "SFT"
    """SFT: supervised fine-tuning on conversations or instructions. Completion: continued
    pre-training on plain text. DPO, KTO, ORPO, SimPO: preference optimisation. Reward: a reward
    model from preferences. GRPO: reinforcement learning with reward functions or a reward model."""
    sft: SFT | None = None
    """Settings of SFT; absent means its defaults."""
    dpo: DPO | None = None
    """Settings of DPO; absent means its defaults."""
    kto: KTO | None = None
    """Settings of KTO; absent means its defaults."""
    orpo: ORPO | None = None
    """Settings of ORPO; absent means its defaults."""
    simpo: SimPO | None = None
    """Settings of SimPO; absent means its defaults."""
    reward: Reward | None = None
    """Settings of Reward; absent means its defaults."""
    grpo: GRPO | None = None
    """Settings of GRPO; required for it, because it needs a reward."""
    method: Method = Field(default_factory=Method)
    """Which weights are trained: adapters or the whole model."""
    training: Training = Field(default_factory=Training)
    """Hyperparameters of training."""
    compute: Compute = Field(default_factory=Compute)
    """Where the job runs, and how training is distributed."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How the tuned model is compared with its base model."""
    export: Export | None = None
    """What becomes of the exported model; absent means the defaults of the installation."""
    serve: Serve | None = None
    """Where the model is served; absent means that the job ends with the artifact."""
    tracking: Tracking | None = None
    """Experiment trackers; training always writes TensorBoard files to the job's report folder."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods of prepare, and of training if there is `tracking`, in the job's
    namespace, for credentials that a cloud gives to one instead of a Secret. One of those that the
    installation allows (`trainer.serviceAccounts` of the chart)."""
    priority_class_name: PriorityClassName | None = None
    """PriorityClass of the job's pods; absent means that of their pool."""
    pod_metadata: PodMetadata | None = None
    """Labels and annotations of the job's pods; those of their pool win."""
    max_restarts: int = Field(default=3, ge=0, le=100)
    """Number of failed attempts, over all stages, that the operator tries again. It never retries
    an error in the user's input, and it does not count attempts that ended because of the cluster
    (eviction, preemption, a lost node)."""
    suspend: bool = False
    """true stops the job after a checkpoint and frees its devices; false resumes it from that
    checkpoint."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=31536000)
    """Seconds after its start at which a job that has not ended fails, without the time that it was
    suspended; absent means no deadline."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=-1, le=31536000)
    """Seconds after its end at which the operator deletes the job and its files in the workspace,
    while its artifact stays as `export.retain` has it; -1 means never. Absent means the
    installation's default (`defaultTtlSecondsAfterFinished` of the chart), which is never unless
    the platform team set one."""
