"""Why there is no plan, and what would help: every remedy named here was tried and fits."""

from collections.abc import Callable, Iterator

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.finetunejob import FineTuneJobSpec, Method
from finetune_api.run import Failure, ModelFacts

from finetune_operator.planner.quantity import GIB, gibibytes, whole

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


def batch_too_small(spec: FineTuneJobSpec, nodes: int, devices: int) -> Failure:
    """The batch cannot be divided among the processes."""
    world, micro = nodes * devices, spec.training.micro_batch_size or 1
    return Failure(
        stage="train",
        reason="BatchTooSmall",
        message=(
            f"training.batchSize {spec.training.batch_size} is smaller than one micro-batch of "
            f"{micro} on each of {nodes} x {devices} devices"
        ),
        remedy=(
            f"set training.batchSize to a multiple of {world * micro}, or ask for fewer devices "
            "in compute"
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
            f"least {gibibytes(need)} on each of {world} devices; profile {profile_name} has "
            f"{gibibytes(have)}"
        ),
        remedy="; or ".join(ways),
    )


def remedies(spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, fits: Fits) -> list[str]:
    """Changes of one field, each of which makes the job fit."""
    return [text for text, changed in _changes(spec, profile, fits) if fits(changed, profile)]


def _changes(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, fits: Fits
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    training, compute = spec.training, spec.compute
    if training.micro_batch_size not in (None, 1):
        changed = training.model_copy(update={"micro_batch_size": None})
        yield "leave out training.microBatchSize", spec.model_copy(update={"training": changed})
    if not training.gradient_checkpointing:
        changed = training.model_copy(update={"gradient_checkpointing": True})
        yield (
            "set training.gradientCheckpointing to true",
            spec.model_copy(update={"training": changed}),
        )
    if compute.strategy != "Auto":
        auto = compute.model_copy(update={"strategy": "Auto"})
        yield "set compute.strategy to Auto", spec.model_copy(update={"compute": auto})
    if compute.nodes is not None or compute.gpus_per_node is not None:
        free = compute.model_copy(update={"nodes": None, "gpus_per_node": None})
        yield (
            "leave out compute.nodes and compute.gpusPerNode",
            spec.model_copy(update={"compute": free}),
        )
    if spec.method.type == "Full":
        yield "set method.type to LoRA", spec.model_copy(update={"method": Method()})
    yield from _shorter(spec, profile, fits)
    yield from _more_nodes(spec, profile, fits)


def _shorter(
    spec: FineTuneJobSpec, profile: AcceleratorProfileSpec, fits: Fits
) -> Iterator[tuple[str, FineTuneJobSpec]]:
    length = spec.training.max_sequence_length // 2
    while length >= SHORTEST:
        training = spec.training.model_copy(update={"max_sequence_length": length})
        changed = spec.model_copy(update={"training": training})
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
