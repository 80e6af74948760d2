"""Why there is no plan, and what would help: every remedy named here was tried and fits."""

import math
from collections.abc import Callable, Iterator

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.combinations import breaks_nothing
from finetune_api.finetunejob import FineTuneJobSpec, Method
from finetune_api.run import Failure, ModelFacts

from finetune_operator.planner.memory_inputs import recomputation
from finetune_operator.planner.quantity import GIB, size_text, whole

Fits = Callable[[FineTuneJobSpec, AcceleratorProfileSpec], bool]
MOST_NODES = 64
"""More nodes than this are not proposed."""
SHORTEST = 256
"""Shorter sequences than this are not proposed."""


def empty_dataset() -> Failure:
    """There is nothing to learn from."""
    return Failure(
        stage="train",
        reason="EmptyDataset",
        message="the training data has no sequence left after preparation",
        remedy="add rows to dataset.train, or hold out less",
    )


def not_enough_devices(asked: int, profile_name: str, present: int) -> Failure:
    """No node of the pool could ever take the pod."""
    return Failure(
        stage="train",
        reason="NotEnoughDevices",
        message=(
            f"compute.gpusPerNode is {asked}, but nodes of profile {profile_name} have {present}"
        ),
        remedy=f"set compute.gpusPerNode to {present} or less, and compute.nodes to more",
    )


def no_fp16(strategy: str, profile_name: str) -> Failure:
    """DeepSpeed cannot compute in this number format on the pool."""
    return Failure(
        stage="train",
        reason="PrecisionUnsupported",
        message=f"DeepSpeed has no fp16 on the CPUs of profile {profile_name}, so {strategy} "
        "cannot run",
        remedy="set training.precision to bf16 or fp32, or compute.strategy to DDP or FSDP",
    )


def batch_too_small(spec: FineTuneJobSpec, nodes: int, devices: int, group: int) -> Failure:
    """The batch cannot be divided among the processes; a group of answers stays together."""
    world, micro = nodes * devices, spec.training.micro_batch_size or 1
    wholly = f" in whole groups of {group}" if group > 1 else ""
    return Failure(
        stage="train",
        reason="BatchTooSmall",
        message=(
            f"training.batchSize {spec.training.batch_size} is smaller than one micro-batch of "
            f"{micro} on each of {nodes} x {devices} devices{wholly}"
        ),
        remedy=(
            f"set training.batchSize to a multiple of {math.lcm(world * micro, group)}, or ask for "
            "fewer devices in compute"
        ),
    )


def does_not_fit(
    spec: FineTuneJobSpec,
    model: ModelFacts,
    profile_name: str,
    profile: AcceleratorProfileSpec,
    world: int,
    need: int,
    alternatives: list[str],
) -> Failure:
    """The least memory that any allowed plan takes is more than a device has."""
    have = whole(profile.memory_per_device)
    ways = alternatives or [f"use a profile with at least {-(-need // GIB)}Gi for each device"]
    return Failure(
        stage="train",
        reason="DoesNotFit",
        message=(
            f"{spec.method.type} training of {model.parameters / 1e9:.2f} B parameters takes at "
            f"least {size_text(need)} on each of {world} devices; profile {profile_name} has "
            f"{size_text(have)}"
        ),
        remedy="; or ".join(ways),
    )


def host_too_small(
    profile_name: str, profile: AcceleratorProfileSpec, need: int, alternatives: list[str]
) -> Failure:
    """It would fit on the device, but not into the host."""
    have = whole(profile.host_memory_per_device)
    ways = alternatives or [f"use a profile with at least {-(-need // GIB)}Gi of host memory"]
    return Failure(
        stage="train",
        reason="HostMemoryTooSmall",
        message=(
            f"loading, copies for checkpoints and compute.offload take {size_text(need)} of host "
            f"memory for each device; profile {profile_name} has {size_text(have)}"
        ),
        remedy="; or ".join(ways),
    )


def remedies(spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, fits: Fits) -> list[str]:
    """Changes of one field, each of which is allowed and makes the job fit."""
    before = spec.to_wire()
    return [
        text
        for text, changed in _changes(spec, profile, fits)
        if breaks_nothing(before, changed.to_wire()) and fits(changed, profile)
    ]


def _changes(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, fits: Fits
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    training, compute = spec.training, spec.compute
    gpus = profile.resource_name is not None
    if training.micro_batch_size not in (None, 1):
        yield "leave out training.microBatchSize", _with(spec, micro_batch_size=None)
    if recomputation(spec) == "None":
        yield (
            "set training.gradientCheckpointing to true",
            _with(spec, gradient_checkpointing=True),
        )
    if training.selective_checkpointing:
        yield (
            "leave out training.selectiveCheckpointing",
            _with(spec, selective_checkpointing=False),
        )
    if compute.strategy != "Auto":
        yield "set compute.strategy to Auto", _spread(spec, strategy="Auto")
    if not compute.offload and gpus:
        yield "set compute.offload to true", _spread(spec, offload=True)
    if compute.nodes is not None or compute.gpus_per_node is not None:
        free = _spread(spec, nodes=None, gpus_per_node=None)
        yield "leave out compute.nodes and compute.gpusPerNode", free
    if gpus and training.optimizer == "AdamW" and spec.method.type == "Full":
        yield "set training.optimizer to AdamW8bit", _with(spec, optimizer="AdamW8bit")
    if training.optimizer != "AdamW":
        # The only one whose states can be divided.
        yield "set training.optimizer to AdamW", _with(spec, optimizer="AdamW")
    yield from _smaller_methods(spec)
    yield from _shorter(spec, profile, fits)
    yield from _more_nodes(spec, profile, fits)


def _with(spec: FineTuneJobSpec, **changes: object) -> FineTuneJobSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})


def _spread(spec: FineTuneJobSpec, **changes: object) -> FineTuneJobSpec:
    return spec.model_copy(update={"compute": spec.compute.model_copy(update=changes)})


def _smaller_methods(spec: FineTuneJobSpec) -> Iterator[tuple[str, FineTuneJobSpec]]:
    method = spec.method
    if method.type in ("Full", "AdaLoRA", "Prefix"):
        yield "set method.type to LoRA", spec.model_copy(update={"method": Method(moe=method.moe)})
    if method.type != "QLoRA":
        quantized = Method(type="QLoRA", lora=method.lora, moe=method.moe)
        yield "set method.type to QLoRA", spec.model_copy(update={"method": quantized})


def _shorter(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, fits: Fits
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    length = spec.training.max_sequence_length // 2
    while length >= SHORTEST:
        changed = _with(spec, max_sequence_length=length)
        if fits(changed, profile):
            yield f"set training.maxSequenceLength to {length}", changed
            return
        length //= 2


def _more_nodes(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, fits: Fits
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    """Proposed only with every device of each node, as several nodes are used."""
    for nodes in range((spec.compute.nodes or profile.max_nodes) + 1, MOST_NODES + 1):
        compute = spec.compute.model_copy(
            update={"nodes": nodes, "gpus_per_node": profile.devices_per_node}
        )
        world = nodes * profile.devices_per_node
        batch = max(spec.training.batch_size, world * (spec.training.micro_batch_size or 1))
        training = spec.training.model_copy(update={"batch_size": batch})
        changed = spec.model_copy(update={"compute": compute, "training": training})
        if fits(changed, profile):
            text = f"set compute.nodes to {nodes}, gpusPerNode to {profile.devices_per_node}"
            if batch != spec.training.batch_size:
                text += f" and training.batchSize to {batch}"
            yield text, changed
            return
