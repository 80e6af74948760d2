"""AcceleratorProfile: a pool of nodes as the platform team describes it.

A FineTuneJob names a profile; without one the operator takes the profile that is marked `default`.
The planner reads the sizes to choose nodes, devices and a parallel strategy; the operator copies
the scheduling fields into the pods. The author of a job can set none of this.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, StringConstraints

from finetune_api.base import (
    RESOURCE_PATTERN,
    CheckedKeys,
    Condition,
    LabelKey,
    LabelValue,
    LongText,
    ObjectName,
    PatternMessage,
    Quantity,
    RefusedPattern,
    SpecModel,
    StatusModel,
    WireModel,
    cel,
    list_map_key,
    validation_config,
)
from finetune_api.pod_options import EnvVar, PodMetadata, PriorityClassName

ResourceName = Annotated[
    str,
    StringConstraints(pattern=RESOURCE_PATTERN, max_length=253),
    PatternMessage("must be the name of an extended resource, such as nvidia.com/gpu"),
]
ExtraResourceName = Annotated[
    str,
    StringConstraints(
        pattern=rf"{RESOURCE_PATTERN}|^hugepages-[1-9][0-9]*(Ki|Mi|Gi)$", max_length=253
    ),
    PatternMessage("must be an extended resource such as rdma/hca, or hugepages-2Mi"),
    RefusedPattern(
        r"^requests\.|kubernetes\.io/",
        "must not be of kubernetes.io or begin with requests., which pods cannot request",
    ),
]
IMAGE_PATTERN = r"^[!-~]+$"


class Toleration(SpecModel):
    """A toleration of every pod on this pool."""

    model_config = validation_config(
        cel(
            "!has(self.operator) || self.operator == 'Equal' || !has(self.value)",
            "value is only for operator Equal; leave value out, or set operator to Equal",
            ".value",
        ),
        cel(
            "(has(self.operator) && self.operator == 'Exists') || has(self.key)",
            "operator Equal needs a key; set key, or set operator to Exists",
            ".key",
        ),
    )

    key: LabelKey | None = None
    """Taint key; absent with operator Exists tolerates every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Equal tolerates a taint with this key and value, Exists one with this key and any value."""
    value: LabelValue | None = None
    """Taint value, only for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent means every effect."""


class Limits(SpecModel):
    """Limits of a container's resources, which the quota of a namespace may ask for."""

    cpu: Quantity | None = None
    """Limit of CPU; absent means none."""
    memory: Quantity | None = None
    """Limit of memory, above which the kernel ends the process."""


def _refuse_duplicates(variables: list[EnvVar]) -> list[EnvVar]:
    """What the API server does for profiles; the value of the chart does not pass through it."""
    names = [each.name for each in variables]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is there more than once; keep one of them")
    return variables


class CpuPods(SpecModel):
    """How pods without devices run: prepare, export and the janitor. A value of the chart."""

    node_selector: Annotated[dict[LabelKey, LabelValue], CheckedKeys()] = Field(
        default_factory=dict, max_length=16
    )
    """Labels of the nodes, which become the pods' nodeSelector."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Tolerations that pods need to run there."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of these pods; absent means the nodes' default."""
    priority_class_name: PriorityClassName | None = None
    """PriorityClass of these pods, unless their job names another one; absent means the cluster's
    default."""
    pod_metadata: PodMetadata | None = None
    """Labels and annotations of these pods, which win over those of a job."""
    env: Annotated[list[EnvVar], AfterValidator(_refuse_duplicates)] = Field(
        default_factory=list, max_length=32, json_schema_extra=list_map_key("name")
    )
    """Environment of these pods: proxies, CA bundles, the Hugging Face endpoint."""
    limits: Limits | None = None
    """Limits of each pod; one that is below what a pod requests is raised to the request. Absent
    means no limit."""
    max_memory: Quantity | None = None
    """Most memory that one of these pods may request: what the largest of their nodes has for
    pods. A job whose export needs more fails before training. Absent means any."""


class ServingDefaults(SpecModel):
    """How vLLM runs on this pool."""

    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN, max_length=512)] | None = None
    """vLLM image for this pool; absent means the image that the operator was installed with."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the served model's weights and activations, vLLM's --dtype."""
    max_model_len: int | None = Field(default=None, ge=64, le=1048576)
    """Served context length in tokens; absent means the model's own, or as much of it as fits into
    the memory."""
    args: list[Annotated[str, StringConstraints(max_length=256)]] = Field(
        default_factory=list, max_length=32
    )
    """Further arguments of the vLLM server, one in each item."""


def _limit_rule(limit: str, request: str) -> dict[str, JsonValue]:
    path = f"self.limitsPerDevice.{limit}"
    return cel(
        f"!has(self.limitsPerDevice) || !has({path}) || "
        f"quantity(string({path})).compareTo(quantity(string(self.{request}))) >= 0",
        f"limitsPerDevice.{limit} is less than {request}, which is requested; raise it, or lower "
        f"{request}",
        f".limitsPerDevice.{limit}",
    )


class AcceleratorProfileSpec(SpecModel):
    """Sizes and scheduling of one pool of nodes."""

    model_config = validation_config(
        _limit_rule("cpu", "cpuPerDevice"),
        _limit_rule("memory", "hostMemoryPerDevice"),
        cel(
            "!has(self.resourceName) || !has(self.extraResources) || "
            "!(self.resourceName in self.extraResources)",
            "extraResources has resourceName, of which a pod gets as many as it has devices; leave "
            "it out there",
            ".extraResources",
        ),
        cel(
            "!has(self.extraResources) || self.extraResources.all(name, "
            "quantity(string(self.extraResources[name])).isInteger() && "
            "quantity(string(self.extraResources[name])).asInteger() > 0)",
            "quantities of extraResources must be whole numbers above 0",
            ".extraResources",
        ),
        cel(
            "!has(self.extraResources) || self.extraResources.all(name, "
            "!name.startsWith('hugepages-') || "
            "!quantity(string(self.extraResources[name])).isInteger() || "
            "quantity(string(self.extraResources[name])).asInteger() % "
            "quantity(name.substring(10)).asInteger() == 0)",
            "hugepages of extraResources must be a multiple of the size of their pages",
            ".extraResources",
        ),
    )

    default: bool = False
    """Whether jobs and endpoints that name no profile use this one. Mark at most one profile."""
    node_selector: Annotated[dict[LabelKey, LabelValue], CheckedKeys()] = Field(
        default_factory=dict, max_length=16
    )
    """Labels of the nodes in this pool, which become the pods' nodeSelector."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Tolerations that pods need to run on this pool."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods on this pool; absent means the nodes' default."""
    priority_class_name: PriorityClassName | None = None
    """PriorityClass of the pods on this pool, unless their job names another one; absent means the
    cluster's default."""
    pod_metadata: PodMetadata | None = None
    """Labels and annotations of the pods on this pool, which win over those of a job."""
    host_network: bool = False
    """Whether training pods use the network of their node, for fabrics that pods cannot reach
    otherwise. They reserve its ports 9400 and 29500, so a node runs one of them at a time."""
    resource_name: ResourceName | None = None
    """Extended resource of one device, for example nvidia.com/gpu; absent means a CPU pool."""
    devices_per_node: int = Field(default=1, ge=1, le=64)
    """Devices on each node; on a CPU pool, training processes on each node."""
    max_nodes: int = Field(default=1, ge=1, le=1024)
    """Maximum number of nodes for a job that does not set compute.nodes."""
    memory_per_device: Quantity
    """Memory of one device, for example 80Gi; on a CPU pool, memory of one process."""
    peak_flops_per_device: float | None = Field(default=None, gt=0, le=1e18)
    """Peak dense bf16 FLOP/s of one device, without sparsity, from which model FLOP/s utilisation
    is computed; for example 9.89e14 for an H100 SXM."""
    cpu_per_device: Quantity = "4"
    """CPU requested for each device."""
    host_memory_per_device: Quantity = "16Gi"
    """Host memory requested for each device. It holds a copy of what a checkpoint saves (with AdamW
    12 bytes for each trained weight, divided among the devices) and what is offloaded; with FSDP
    the first pod loads the whole model into it."""
    limits_per_device: Limits | None = None
    """Limits for each device. Absent means no limit of CPU, and of memory `hostMemoryPerDevice` on
    an accelerator pool and none on a CPU pool."""
    extra_resources: Annotated[dict[ExtraResourceName, Quantity], CheckedKeys()] = Field(
        default_factory=dict, max_length=8
    )
    """Further resources of each training pod, however many devices it has: extended resources such
    as rdma/hca or vpc.amazonaws.com/efa, and hugepages-2Mi or hugepages-1Gi. They become request
    and limit."""
    shared_memory: Quantity = "1Gi"
    """Size of /dev/shm, which NCCL and vLLM use."""
    collective_timeout_seconds: int | None = Field(default=None, ge=60, le=3600)
    """Seconds that a training process waits for another before the operator replaces the attempt;
    a process without progress is reported after a tenth of it. Absent means 15 minutes."""
    env: list[EnvVar] = Field(
        default_factory=list, max_length=32, json_schema_extra=list_map_key("name")
    )
    """Environment of training, evaluation and serving pods on this pool: settings of NCCL and other
    libraries, proxies, CA bundles."""
    serving: ServingDefaults = Field(default_factory=ServingDefaults)
    """How vLLM runs on this pool."""


class AcceleratorProfile(WireModel):
    """An AcceleratorProfile with its name."""

    name: ObjectName
    """metadata.name."""
    spec: AcceleratorProfileSpec
    """Sizes and scheduling."""


class AcceleratorProfileStatus(StatusModel):
    """Whether the profile can be used, and what uses it now. An operator that watches only some
    namespaces writes none."""

    observed_generation: int = Field(default=0, ge=0)
    """metadata.generation that this status was computed from."""
    message: LongText = ""
    """Why the profile cannot be used; empty where it can."""
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, json_schema_extra=list_map_key("type")
    )
    """Conditions of type Ready and Stalled; docs/reasons.md explains their reasons."""
    jobs: int = Field(default=0, ge=0)
    """FineTuneJobs that have not ended and run on this pool, whether they have pods or wait."""
    endpoints: int = Field(default=0, ge=0)
    """ModelEndpoints that serve on this pool."""
    training_devices: int = Field(default=0, ge=0)
    """Devices that training pods hold on nodes; on a CPU pool, training processes."""
