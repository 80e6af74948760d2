"""The spec of a FineTuneJob: what the user writes.

The smallest job names a model and a data set; every other field has a default that an experienced
practitioner would choose, and status.plan shows what the planner chose. The sections of the spec
have modules of their own; finetune_api.finetunejob exports all of them.
"""

from typing import Literal

from pydantic import Field

from finetune_api.base import ChildName, ObjectName, Percent, SpecModel, cel, validations
from finetune_api.combinations import schema_rules
from finetune_api.dataset import Dataset
from finetune_api.method import Method
from finetune_api.model import ModelSource
from finetune_api.objective import DPO, GRPO, KTO, ORPO, SFT, Objective, Reward
from finetune_api.tracking import Tracking
from finetune_api.training import Training


class Compute(SpecModel):
    """Where it runs; what is left out the planner chooses."""

    profile: ObjectName | None = None
    """AcceleratorProfile; absent means the one marked as default."""
    nodes: int | None = Field(default=None, ge=1, le=1024)
    """Nodes, one pod each."""
    gpus_per_node: int | None = Field(default=None, ge=1, le=64)
    """Devices on each node; on a CPU pool, processes on each node. Absent means the fewest that
    fit, or whole nodes where nodes is 2 or more."""
    strategy: Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"] = "Auto"
    """How model and optimizer are spread over the devices."""
    offload: bool = False
    """Keep optimizer states (ZeRO; with ZeRO-3 the weights too) or all shards (FSDP) in host
    memory: slower, and larger models fit. On a CPU pool it saves nothing."""


class GateRule(SpecModel):
    """A condition on the evaluation without which the job fails and nothing is served."""

    metric: Literal["loss", "exactMatch", "rougeL", "preferenceAccuracy", "reward"]
    """loss: held-out loss of the objective, relative to the base model's; exactMatch, rougeL and
    preferenceAccuracy (DPO, KTO, ORPO, Reward): points of a hundred above the base model's; reward
    (GRPO): hundredths above the base model's."""
    min_improvement: Percent
    """Least improvement over the base model; negative allows that much of a regression."""


class Evaluation(SpecModel):
    """How the tuned model is compared with its base."""

    max_samples: int = Field(default=512, ge=1, le=100000)
    """Most held-out rows used for the loss."""
    generations: int = Field(default=64, ge=3, le=10000)
    """Most held-out prompts answered by both models, for exactMatch, rougeL and reward."""
    max_new_tokens: int = Field(default=128, ge=1, le=8192)
    """Longest answer in tokens; for GRPO at least grpo.maxNewTokens."""
    gate: list[GateRule] = Field(default_factory=list, max_length=8)
    """Every rule must hold; an empty list lets every model through."""


class Serve(SpecModel):
    """Roll the result out."""

    endpoint: ChildName
    """Name of the ModelEndpoint in the job's namespace that gets the new revision; it is
    created when there is none."""
    profile: ObjectName | None = None
    """AcceleratorProfile of an endpoint that is created; absent means the one trained on. An
    endpoint that exists keeps its own."""


class FineTuneJobSpec(SpecModel):
    """What the user wants."""

    model_config = validations(
        *schema_rules(),
        cel(
            "self.objective != 'GRPO' || has(self.grpo)",
            "objective GRPO needs grpo.rewards or grpo.rewardModel",
            ".grpo",
        ),
        cel(
            "self.objective != 'GRPO' || !has(self.grpo) || "
            "self.training.batchSize % self.grpo.generations == 0",
            "with GRPO training.batchSize counts answers and must be a multiple of "
            "grpo.generations",
            ".training.batchSize",
        ),
        cel(
            "self.evaluation.gate.all(g, g.metric == 'reward' ? self.objective == 'GRPO' : "
            "g.metric == 'preferenceAccuracy' ? "
            "self.objective in ['DPO', 'KTO', 'ORPO', 'Reward'] : "
            "g.metric == 'loss' ? self.objective != 'GRPO' : self.objective == 'SFT')",
            "a gate's metric must be one that the objective has: loss for all but GRPO, reward for "
            "GRPO, preferenceAccuracy for DPO, KTO, ORPO and Reward, exactMatch and rougeL for SFT",
            ".evaluation.gate",
        ),
    )

    model: ModelSource
    """The base model."""
    dataset: Dataset
    """The data."""
    objective: Objective = "SFT"
    """SFT: supervised fine-tuning on conversations or instructions. Completion: continued
    pre-training on plain text. DPO, KTO, ORPO: from preferences. Reward: a reward model from
    preferences. GRPO: reinforcement learning against reward functions or a reward model."""
    sft: SFT | None = None
    """Settings of SFT; absent means its defaults."""
    dpo: DPO | None = None
    """Settings of DPO; absent means its defaults."""
    kto: KTO | None = None
    """Settings of KTO; absent means its defaults."""
    orpo: ORPO | None = None
    """Settings of ORPO; absent means its defaults."""
    reward: Reward | None = None
    """Settings of Reward; absent means its defaults."""
    grpo: GRPO | None = None
    """Settings of GRPO, which needs at least a reward."""
    method: Method = Field(default_factory=Method)
    """What is trained."""
    training: Training = Field(default_factory=Training)
    """How it is trained."""
    compute: Compute = Field(default_factory=Compute)
    """Where it runs."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How it is judged."""
    serve: Serve | None = None
    """Where it is served; absent means that the job ends with the artifact."""
    tracking: Tracking | None = None
    """Experiment trackers; TensorBoard files are always written to the job's report folder."""
    max_restarts: int = Field(default=3, ge=0, le=100)
    """Failed attempts that are tried again, over all stages; errors of the user never are, and
    what others did to the pods (eviction, preemption, a lost node) does not count."""
    suspend: bool = False
    """Stop after a checkpoint and give the devices back; false again goes on from there."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=31536000)
    """Seconds after its start at which a job that has not ended fails; time spent suspended does
    not count."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31536000)
    """Seconds after its end at which the job is deleted, with all that it left in the workspace
    but an artifact that an endpoint serves or another job starts from; absent means never."""
