"""Which devices, which strategy, which micro-batch: the cheapest way to train that fits.

The planner honours every field that the job sets. It searches the rest in a fixed order and takes
the first plan that fits: few devices before many, one node before several, then the strategy that
communicates least. It uses more devices than memory requires only when the job says so, because a
user who leaves a field out does not want to pay for eight devices.

Order of strategies on several devices: DDP, ZeRO-2, then full sharding. FSDP comes first for Full,
because it keeps fp32 master weights of its own shards, and for QLoRA, because it moves four-bit
weights as they are; ZeRO-3 comes first for other adapters, because it gathers frozen and trained
weights of different types one by one; the other of the two follows. The planner skips what the
table of combinations forbids, so a job with offload gets ZeRO or FSDP on a single device too.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.combinations import ZERO_STRATEGIES, allows
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.objective import DROPOUT_OBJECTIVES
from finetune_api.protocol import Strategy
from finetune_api.train_plan import MemoryEstimate, TrainPlan

from finetune_operator.planner.activations import adapter_dropout
from finetune_operator.planner.learning_rate import default_learning_rate
from finetune_operator.planner.memory import CPU_OVERHEAD, estimate_memory, host_bytes
from finetune_operator.planner.memory_inputs import (
    MemoryInputs,
    collect_memory_inputs,
    possible_precisions,
)
from finetune_operator.planner.quantity import floor_quantity, format_bytes
from finetune_operator.planner.refusal import (
    propose_remedies,
    refuse_batch_size,
    refuse_device_count,
    refuse_device_memory,
    refuse_empty_dataset,
    refuse_fp16,
    refuse_host_memory,
)


@dataclass(frozen=True)
class PlanRequest:
    """A job, its facts and its pool."""

    spec: FineTuneJobSpec
    model: ModelFacts
    data: DataFacts
    profile_name: str
    profile: AcceleratorProfileSpec
    reward: ModelFacts | None = None
    """Of grpo.rewardModel."""

    @property
    def group_size(self) -> int:
        """Samples that a batch must hold together: the completions of one prompt."""
        grpo = self.spec.grpo if self.spec.objective == "GRPO" else None
        return grpo.generations if grpo else 1

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """What the processes compute on."""
        return "cuda" if self.profile.resource_name else "cpu"

    @property
    def min_micro_batch(self) -> int:
        """The smallest micro-batch that the job allows."""
        return self.spec.training.micro_batch_size or 1

    @cached_property
    def memory_inputs(self) -> MemoryInputs:
        """What decides the memory of one step."""
        return collect_memory_inputs(self.spec, self.data, self.reward, self.device)


@dataclass(frozen=True)
class Topology:
    """Nodes and devices on each."""

    nodes: int
    devices: int

    @property
    def world_size(self) -> int:
        """Number of processes, one for each device."""
        return self.nodes * self.devices


def plan_training(
    spec: FineTuneJobSpec,
    model: ModelFacts,
    data: DataFacts,
    profile_name: str,
    profile: AcceleratorProfileSpec,
    reward: ModelFacts | None = None,
) -> TrainPlan | Failure:
    """The plan, or why there is none: DoesNotFit, HostMemoryTooSmall, BatchTooSmall,
    NotEnoughDevices, PrecisionUnsupported, EmptyDataset.

    The same request always has the same plan, and more memory never turns a plan into a refusal.
    """
    request = PlanRequest(spec, model, data, profile_name, profile, reward)
    if data.train_sequences == 0:
        return refuse_empty_dataset()
    requested = spec.compute.gpus_per_node or 0
    if request.device == "cuda" and requested > profile.devices_per_node:
        return refuse_device_count(requested, profile_name, profile.devices_per_node)
    if spec.compute.strategy in ZERO_STRATEGIES and not has_zero_support(request):
        return refuse_fp16(spec.compute.strategy, profile_name)
    plan = find_cheapest_plan(request)
    if plan is not None:
        return plan
    usable = [
        topology
        for topology in list_topologies(request)
        if is_batch_large_enough(request, topology)
    ]
    if not usable:
        smallest = min(list_topologies(request), key=lambda topology: topology.world_size)
        return refuse_batch_size(spec, smallest.nodes, smallest.devices, request.group_size)
    return _refuse_memory(request, max(usable, key=lambda topology: topology.world_size))


def _refuse_memory(request: PlanRequest, largest: Topology) -> Failure:
    """Why not even the largest topology fits."""
    strategies = list_strategies(request, largest)
    estimates = [
        _estimate_memory(request, largest, each, request.min_micro_batch) for each in strategies
    ]
    memory = min(estimates, key=lambda estimate: estimate.total)
    profile, name = request.profile, request.profile_name
    ways = propose_remedies(
        request.spec,
        profile,
        lambda spec, pool: (
            find_cheapest_plan(replace(request, spec=spec, profile=pool)) is not None
        ),
    )
    if memory.total <= memory.available:
        need = min(_estimate_host_memory(request, largest, each) for each in strategies)
        return refuse_host_memory(name, profile, need, ways)
    return refuse_device_memory(
        request.spec, request.model, name, profile, largest.world_size, memory.total, ways
    )


def find_cheapest_plan(request: PlanRequest) -> TrainPlan | None:
    """The first plan that fits, in the order of this module."""
    for topology in list_topologies(request):
        if not is_batch_large_enough(request, topology):
            continue
        for strategy in list_strategies(request, topology):
            if not has_host_memory(request, topology, strategy):
                continue
            micro_batch = choose_micro_batch(request, topology, strategy)
            if micro_batch is not None:
                return _build_plan(request, topology, strategy, micro_batch)
    return None


def list_topologies(request: PlanRequest) -> Iterator[Topology]:
    """Every topology that the planner may choose, cheapest first.

    A user who requests several nodes means whole nodes, so there the order is reversed.
    """
    compute, profile = request.spec.compute, request.profile
    if compute.nodes is not None:
        node_counts: Sequence[int] = [compute.nodes]
    elif request.device == "cpu":
        node_counts = [1]
    else:
        node_counts = range(1, profile.max_nodes + 1)
    for nodes in node_counts:
        if compute.gpus_per_node is not None:
            yield Topology(nodes, compute.gpus_per_node)
        elif nodes > 1 and compute.nodes is None:
            yield Topology(nodes, profile.devices_per_node)
        else:
            counts = list_device_counts(profile.devices_per_node)
            yield from (
                Topology(nodes, devices) for devices in (counts[::-1] if nodes > 1 else counts)
            )


def list_device_counts(most: int) -> list[int]:
    """1, 2, 4 … up to `most`, and `most` itself."""
    counts = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return counts if counts[-1] == most else [*counts, most]


def list_strategies(request: PlanRequest, topology: Topology) -> list[Strategy]:
    """Strategies to try, the one that communicates least first."""
    spec = request.spec
    if spec.compute.strategy != "Auto":
        return [spec.compute.strategy]
    wire = spec.to_wire()
    sharded: list[Strategy] = ["FSDP", "ZeRO3"]
    if spec.method.type not in ("Full", "QLoRA"):
        sharded.reverse()
    order: list[Strategy] = ["DDP", "ZeRO2", *sharded]
    allowed = [
        each
        for each in order
        if allows(wire, compute__strategy=each)
        and (each not in ZERO_STRATEGIES or has_zero_support(request))
    ]
    # On one device there is nothing to shard: only offload makes the other strategies save memory.
    return allowed[:1] if topology.world_size == 1 and not spec.compute.offload else allowed


def has_zero_support(request: PlanRequest) -> bool:
    """Whether DeepSpeed supports the number format: it has no fp16 on a CPU."""
    return request.device == "cuda" or request.spec.training.precision != "fp16"


def is_batch_large_enough(request: PlanRequest, topology: Topology) -> bool:
    """Whether every process gets at least one micro-batch of an optimizer step."""
    return count_accumulation_steps(request, topology, request.min_micro_batch) > 0


def count_accumulation_steps(request: PlanRequest, topology: Topology, micro_batch: int) -> int:
    """Forward passes per optimizer step: as many as the batch holds in whole groups."""
    per_pass = topology.world_size * micro_batch
    passes_per_group = request.group_size // math.gcd(request.group_size, per_pass)
    return request.spec.training.batch_size // per_pass // passes_per_group * passes_per_group


def has_host_memory(request: PlanRequest, topology: Topology, strategy: Strategy) -> bool:
    """Whether loading, checkpoint copies and offloaded states fit into the host memory of the
    profile, which is the memory limit of pods on an accelerator pool."""
    need = _estimate_host_memory(request, topology, strategy)
    return need <= floor_quantity(request.profile.host_memory_per_device)


def _estimate_host_memory(request: PlanRequest, topology: Topology, strategy: Strategy) -> int:
    """Host memory that one process takes, in bytes; 0 on a CPU pool, which has no other memory."""
    if request.device == "cpu":
        return 0
    inputs = request.memory_inputs
    held = host_bytes(request.model, inputs, strategy, topology.world_size, topology.devices)
    return held + CPU_OVERHEAD


def choose_micro_batch(request: PlanRequest, topology: Topology, strategy: Strategy) -> int | None:
    """The largest power of two that divides a process's part of the batch and fits."""
    per_process = request.spec.training.batch_size // topology.world_size
    requested = request.spec.training.micro_batch_size
    powers = [2**power for power in range(per_process.bit_length(), -1, -1)]
    for micro_batch in [requested] if requested else powers:
        if requested is None and per_process % micro_batch:
            continue
        if not count_accumulation_steps(request, topology, micro_batch):
            continue
        need = _estimate_memory(request, topology, strategy, micro_batch)
        if need.total <= need.available:
            return micro_batch
    return None


def _estimate_memory(
    request: PlanRequest, topology: Topology, strategy: Strategy, micro_batch: int
) -> MemoryEstimate:
    """The most memory that one of the possible precisions takes: full training in bf16 keeps fp32
    weights and a copy of them, which can be more than fp32 alone."""
    available = floor_quantity(request.profile.memory_per_device)
    estimates = [
        estimate_memory(
            request.model,
            replace(request.memory_inputs, precision=precision),
            strategy,
            topology.world_size,
            micro_batch,
            available,
        )
        for precision in possible_precisions(request.spec.training.precision, request.device)
    ]
    return max(estimates, key=lambda estimate: estimate.total)


def _build_plan(
    request: PlanRequest, topology: Topology, strategy: Strategy, micro_batch: int
) -> TrainPlan:
    training = request.spec.training
    accumulation = count_accumulation_steps(request, topology, micro_batch)
    batch = micro_batch * accumulation * topology.world_size
    steps = _count_steps(request, batch)
    memory = _estimate_memory(request, topology, strategy, micro_batch)
    return TrainPlan(
        profile=request.profile_name,
        nodes=topology.nodes,
        gpus_per_node=topology.devices,
        world_size=topology.world_size,
        device=request.device,
        strategy=strategy,
        offload=request.spec.compute.offload,
        peak_flops=request.profile.peak_flops_per_device,
        micro_batch_size=micro_batch,
        gradient_accumulation=accumulation,
        batch_size=batch,
        total_steps=min(steps, training.max_steps or steps),
        learning_rate=training.learning_rate or default_learning_rate(request.spec),
        memory=memory,
        reason=_explain_plan(request, topology, strategy, micro_batch, accumulation, memory),
    )


def _count_steps(request: PlanRequest, batch: int) -> int:
    """Optimizer steps of all epochs; GRPO's data are prompts, and a job may train on the same
    completions several times."""
    spec = request.spec
    updates = spec.grpo.updates if spec.objective == "GRPO" and spec.grpo else 1
    per_epoch = math.ceil(request.data.train_sequences * request.group_size / batch)
    return per_epoch * spec.training.epochs * updates


def _explain_plan(
    request: PlanRequest,
    topology: Topology,
    strategy: Strategy,
    micro_batch: int,
    accumulation: int,
    memory: MemoryEstimate,
) -> str:
    requested = request.spec.training.batch_size
    world_size = topology.world_size
    batch = micro_batch * accumulation * world_size
    offload = " and offload" if request.spec.compute.offload else ""
    text = (
        f"{request.spec.method.type} with {strategy}{offload} on {topology.nodes} x "
        f"{topology.devices} {request.device} of {request.profile_name} takes "
        f"{format_bytes(memory.total)} of {format_bytes(memory.available)} each; batch {batch} = "
        f"{world_size} x {micro_batch} x {accumulation}"
    )
    if request.spec.training.precision == "Auto":
        formats = possible_precisions("Auto", request.device)
        text += f"; precision Auto, memory for {' or '.join(formats)}"
    if request.spec.objective not in DROPOUT_OBJECTIVES and adapter_dropout(request.spec.method):
        text += f"; no dropout, as {request.spec.objective} compares exact probabilities"
    if batch != requested:
        text += f" instead of {requested}, which {world_size} x {micro_batch} does not divide"
    return text
