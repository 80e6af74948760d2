"""AcceleratorProfile: what a pool of nodes is, written once by the platform team.

A FineTuneJob names a profile, or none: then the profile marked `default` is used. The planner
reads the sizes to choose nodes, devices and a parallel strategy; the builders copy the
scheduling fields into the pods. Nothing here can be set by the author of a job.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    RESOURCE_PATTERN,
    KeysWorded,
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
    SpecModel,
    WireModel,
    Worded,
    cel,
    keyed_by,
    validations,
)

EnvName = Annotated[
    str,
    StringConstraints(pattern=r"^(NCCL|GLOO|UCX|FI|OMP|KMP|VLLM|TORCH)_[A-Z0-9_]+$", max_length=64),
    Worded("must begin with NCCL_, GLOO_, UCX_, FI_, OMP_, KMP_, VLLM_ or TORCH_"),
]

ResourceName = Annotated[
    str,
    StringConstraints(pattern=RESOURCE_PATTERN, max_length=253),
    Worded("must be the name of an extended resource, such as nvidia.com/gpu"),
]
IMAGE_PATTERN = r"^[!-~]+$"


class Toleration(SpecModel):
    """A toleration that every pod on this pool carries."""

    model_config = validations(
        cel(
            "self.operator == 'Equal' || !has(self.value)",
            "value is only for operator Equal",
            ".value",
        ),
        cel(
            "self.operator == 'Exists' || has(self.key)",
            "operator Equal needs a key",
            ".key",
        ),
    )

    key: LabelKey | None = None
    """Taint key; absent with operator Exists tolerates every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared."""
    value: LabelValue | None = None
    """Taint value, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent means every effect."""


class EnvVar(SpecModel):
    """An environment variable for communication or runtime libraries."""

    name: EnvName
    """Name; only NCCL_, GLOO_, UCX_, FI_, OMP_, KMP_, VLLM_ and TORCH_ are allowed."""
    value: Annotated[str, StringConstraints(max_length=1024)]
    """Value."""


class ServingDefaults(SpecModel):
    """How vLLM runs on this pool."""

    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN, max_length=512)] | None = None
    """vLLM image for this pool; absent means the operator's own pinned one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights and activations of the served model."""
    max_model_len: int | None = Field(default=None, ge=64, le=1048576)
    """Context length in tokens that is served; absent means the model's own, or as much of it as
    fits into the memory."""
    args: list[Annotated[str, StringConstraints(max_length=256)]] = Field(
        default_factory=list, max_length=32
    )
    """Further vLLM server arguments, one per item."""


class AcceleratorProfileSpec(SpecModel):
    """Sizes and scheduling of one pool of nodes."""

    default: bool = False
    """Used by jobs that name no profile. At most one profile should say so."""
    node_selector: Annotated[dict[LabelKey, LabelValue], KeysWorded()] = Field(
        default_factory=dict, max_length=16
    )
    """Labels that the nodes of this pool carry."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Tolerations that pods need to run on this pool."""
    resource_name: ResourceName | None = None
    """Extended resource of one device, for example nvidia.com/gpu; absent means CPU only."""
    devices_per_node: int = Field(default=1, ge=1, le=64)
    """Devices on each node; on a CPU pool, training processes per node."""
    max_nodes: int = Field(default=1, ge=1, le=1024)
    """Most nodes that one job may take when it does not say how many it wants."""
    memory_per_device: Quantity
    """Memory of one device, for example 80Gi; on a CPU pool, memory of one process."""
    peak_flops_per_device: float | None = Field(default=None, gt=0, le=1e18)
    """Dense bf16 FLOP/s of one device, without sparsity, for model FLOP/s utilisation; for example
    9.89e14 of an H100 SXM."""
    cpu_per_device: Quantity = "4"
    """CPU requested for each device."""
    host_memory_per_device: Quantity = "16Gi"
    """Host memory requested for each device, on an accelerator pool its limit too. It holds a copy
    of what a checkpoint saves (with AdamW 12 bytes for each trained weight, divided among the
    devices) and what is offloaded; with FSDP the first pod loads the whole model into it."""
    shared_memory: Quantity = "1Gi"
    """Size of /dev/shm, which NCCL and vLLM need."""
    collective_timeout_seconds: int | None = Field(default=None, ge=60, le=3600)
    """Longest wait of one training process for another, after which the attempt is replaced; a
    process that stands still is named after a tenth of it. Absent means 15 minutes."""
    env: list[EnvVar] = Field(
        default_factory=list, max_length=32, json_schema_extra=keyed_by("name")
    )
    """Environment of training and serving pods on this pool (NCCL settings of the network)."""
    serving: ServingDefaults = Field(default_factory=ServingDefaults)
    """How vLLM runs on this pool."""


class AcceleratorProfile(WireModel):
    """A pool of nodes as the platform team describes it."""

    name: ObjectName
    """metadata.name."""
    spec: AcceleratorProfileSpec
    """Sizes and scheduling."""
