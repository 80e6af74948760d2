"""Why there is no plan, and what would help: every remedy named here was tried and fits."""

import math
from collections.abc import Callable, Iterator

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.combinations import breaks_no_new_rule
from finetune_api.facts import ModelFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec, Method

from finetune_operator.planner.memory_inputs import choose_recomputation, possible_precisions
from finetune_operator.planner.quantity import GIB, floor_quantity, format_bytes

HasPlan = Callable[[FineTuneJobSpec, AcceleratorProfileSpec], bool]
MAX_PROPOSED_NODES = 64
MIN_PROPOSED_LENGTH = 256
"""Shortest sequence that a remedy proposes, in tokens."""


def refuse_empty_dataset() -> Failure:
    """EmptyDataset: preparation left nothing to train on."""
    return Failure(
        stage="train",
        reason="EmptyDataset",
        message="the training data has no sequence left after preparation",
        remedy="add rows to dataset.train, or hold out less",
    )


def refuse_device_count(requested: int, profile_name: str, present: int) -> Failure:
    """NotEnoughDevices: no node of the pool could ever run the pod."""
    return Failure(
        stage="train",
        reason="NotEnoughDevices",
        message=(
            f"compute.gpusPerNode is {requested}, but nodes of profile {profile_name} have "
            f"{present}"
        ),
        remedy=f"set compute.gpusPerNode to {present} or less, and compute.nodes to more",
    )


def refuse_fp16(strategy: str, profile_name: str) -> Failure:
    """PrecisionUnsupported: DeepSpeed cannot compute in this number format on the pool."""
    return Failure(
        stage="train",
        reason="PrecisionUnsupported",
        message=f"DeepSpeed has no fp16 on the CPUs of profile {profile_name}, so {strategy} "
        "cannot run",
        remedy="set training.precision to bf16 or fp32, or compute.strategy to DDP or FSDP",
    )


def refuse_batch_size(spec: FineTuneJobSpec, nodes: int, devices: int, group_size: int) -> Failure:
    """BatchTooSmall: some process would get no micro-batch; groups of completions stay together."""
    world_size, micro_batch = nodes * devices, spec.training.micro_batch_size or 1
    groups = f" in whole groups of {group_size}" if group_size > 1 else ""
    multiple = math.lcm(world_size * micro_batch, group_size)
    return Failure(
        stage="train",
        reason="BatchTooSmall",
        message=(
            f"training.batchSize {spec.training.batch_size} is smaller than one micro-batch of "
            f"{micro_batch} on each of {nodes} x {devices} devices{groups}"
        ),
        remedy=(
            f"set training.batchSize to a multiple of {multiple}, or request fewer devices in "
            "compute"
        ),
    )


def refuse_device_memory(
    spec: FineTuneJobSpec,
    model: ModelFacts,
    profile_name: str,
    profile: AcceleratorProfileSpec,
    world_size: int,
    need: int,
    alternatives: list[str],
) -> Failure:
    """DoesNotFit: the least memory that any allowed plan takes is more than a device has."""
    available = floor_quantity(profile.memory_per_device)
    ways = alternatives or [f"use a profile with at least {-(-need // GIB)}Gi for each device"]
    return Failure(
        stage="train",
        reason="DoesNotFit",
        message=(
            f"{spec.method.type} training of {model.parameters / 1e9:.2f} B parameters takes at "
            f"least {format_bytes(need)} on each of {world_size} devices; profile {profile_name} "
            f"has {format_bytes(available)}"
        ),
        remedy="; or ".join(ways),
    )


def refuse_host_memory(
    profile_name: str, profile: AcceleratorProfileSpec, need: int, alternatives: list[str]
) -> Failure:
    """HostMemoryTooSmall: the plan would fit on the device, but not on the host."""
    available = floor_quantity(profile.host_memory_per_device)
    ways = alternatives or [f"use a profile with at least {-(-need // GIB)}Gi of host memory"]
    return Failure(
        stage="train",
        reason="HostMemoryTooSmall",
        message=(
            f"loading, copies for checkpoints and compute.offload take {format_bytes(need)} of "
            f"host memory for each device; profile {profile_name} has {format_bytes(available)}"
        ),
        remedy="; or ".join(ways),
    )


def propose_remedies(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, has_plan: HasPlan
) -> list[str]:
    """Changes of one field, each of which is allowed and makes the job fit."""
    before = spec.to_wire()
    return [
        text
        for text, changed in _list_changes(spec, profile, has_plan)
        if breaks_no_new_rule(before, changed.to_wire()) and has_plan(changed, profile)
    ]


def _list_changes(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, has_plan: HasPlan
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    training, compute = spec.training, spec.compute
    has_gpus = profile.resource_name is not None
    if training.micro_batch_size not in (None, 1):
        yield "leave out training.microBatchSize", _with_training(spec, micro_batch_size=None)
    if choose_recomputation(spec) == "None":
        yield (
            "set training.gradientCheckpointing to true",
            _with_training(spec, gradient_checkpointing=True),
        )
    if training.selective_checkpointing:
        yield (
            "leave out training.selectiveCheckpointing",
            _with_training(spec, selective_checkpointing=False),
        )
    if training.precision == "Auto":
        # A plan for Auto has memory for each of these.
        for precision in possible_precisions("Auto", "cuda" if has_gpus else "cpu"):
            yield (
                f"set training.precision to {precision}",
                _with_training(spec, precision=precision),
            )
    if compute.strategy != "Auto":
        yield "set compute.strategy to Auto", _with_compute(spec, strategy="Auto")
    if not compute.offload and has_gpus:
        yield "set compute.offload to true", _with_compute(spec, offload=True)
    if compute.nodes is not None or compute.gpus_per_node is not None:
        free = _with_compute(spec, nodes=None, gpus_per_node=None)
        yield "leave out compute.nodes and compute.gpusPerNode", free
    if has_gpus and training.optimizer == "AdamW" and spec.method.type == "Full":
        yield "set training.optimizer to AdamW8bit", _with_training(spec, optimizer="AdamW8bit")
    if training.optimizer != "AdamW":
        # The only optimizer whose states can be sharded.
        yield "set training.optimizer to AdamW", _with_training(spec, optimizer="AdamW")
    yield from _propose_methods(spec)
    yield from _propose_sequence_length(spec, profile, has_plan)
    yield from _propose_nodes(spec, profile, has_plan)


def _with_training(spec: FineTuneJobSpec, **changes: object) -> FineTuneJobSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})


def _with_compute(spec: FineTuneJobSpec, **changes: object) -> FineTuneJobSpec:
    return spec.model_copy(update={"compute": spec.compute.model_copy(update=changes)})


def _propose_methods(spec: FineTuneJobSpec) -> Iterator[tuple[str, FineTuneJobSpec]]:
    method = spec.method
    if method.type in ("Full", "AdaLoRA", "Prefix"):
        yield "set method.type to LoRA", spec.model_copy(update={"method": Method(moe=method.moe)})
    if method.type != "QLoRA":
        quantized = Method(type="QLoRA", lora=method.lora, moe=method.moe)
        yield "set method.type to QLoRA", spec.model_copy(update={"method": quantized})


def _propose_sequence_length(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, has_plan: HasPlan
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    length = spec.training.max_sequence_length // 2
    while length >= MIN_PROPOSED_LENGTH:
        changed = _with_training(spec, max_sequence_length=length)
        if has_plan(changed, profile):
            yield f"set training.maxSequenceLength to {length}", changed
            return
        length //= 2


def _propose_nodes(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, has_plan: HasPlan
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    """More nodes, always with every device of each, because several nodes are whole nodes."""
    for nodes in range((spec.compute.nodes or profile.max_nodes) + 1, MAX_PROPOSED_NODES + 1):
        compute = spec.compute.model_copy(
            update={"nodes": nodes, "gpus_per_node": profile.devices_per_node}
        )
        world_size = nodes * profile.devices_per_node
        batch = max(spec.training.batch_size, world_size * (spec.training.micro_batch_size or 1))
        training = spec.training.model_copy(update={"batch_size": batch})
        changed = spec.model_copy(update={"compute": compute, "training": training})
        if has_plan(changed, profile):
            text = f"set compute.nodes to {nodes}, gpusPerNode to {profile.devices_per_node}"
            if batch != spec.training.batch_size:
                text += f" and training.batchSize to {batch}"
            yield text, changed
            return
