"""Which devices, which strategy, which micro-batch: the cheapest way to train that fits.

What the job says is honoured; the rest is searched in a fixed order and the first plan that fits
is taken: few devices before many, one node before several, then the strategy that communicates
least. Data is spread over more devices than memory asks for only when the job says so, because
nobody wants to pay for eight devices by leaving a field out.

Order of strategies on several devices: DDP, ZeRO-2, then full sharding; FSDP for Full, because
it keeps fp32 master weights of its own shards, and for QLoRA, whose four-bit weights it moves as
they are; ZeRO-3 for other adapters, because it gathers frozen and trained weights of different
types one by one; the other of both after it. What the table of combinations forbids is left out,
so a job with offload gets ZeRO or FSDP on a single device too.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.combinations import ZERO, allows
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import DataFacts, Failure, MemoryEstimate, ModelFacts, Strategy, TrainPlan

from finetune_operator.planner.learning_rate import default_learning_rate
from finetune_operator.planner.memory import CPU_OVERHEAD, estimate, host_bytes
from finetune_operator.planner.memory_inputs import MemoryInputs, load_of
from finetune_operator.planner.quantity import size_text, whole
from finetune_operator.planner.refusal import (
    batch_too_small,
    does_not_fit,
    empty_dataset,
    host_too_small,
    no_fp16,
    not_enough_devices,
    remedies,
)


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned."""

    spec: FineTuneJobSpec
    model: ModelFacts
    data: DataFacts
    profile_name: str
    profile: AcceleratorProfileSpec
    reward: ModelFacts | None = None
    """Of grpo.rewardModel."""

    @property
    def group(self) -> int:
        """Units that a batch must hold together: the answers to one prompt."""
        grpo = self.spec.grpo if self.spec.objective == "GRPO" else None
        return grpo.generations if grpo else 1

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """What the processes compute on."""
        return "cuda" if self.profile.resource_name else "cpu"

    @cached_property
    def load(self) -> MemoryInputs:
        """What decides the memory of one step."""
        return load_of(self.spec, self.data, self.reward, self.device)


@dataclass(frozen=True)
class Topology:
    """Nodes and devices on each."""

    nodes: int
    devices: int

    @property
    def world(self) -> int:
        """Processes in all."""
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

    The same request always has the same answer, and more memory never turns a plan into a
    refusal.
    """
    request = PlanRequest(spec, model, data, profile_name, profile, reward)
    if data.train_sequences == 0:
        return empty_dataset()
    asked = spec.compute.gpus_per_node or 0
    if request.device == "cuda" and asked > profile.devices_per_node:
        return not_enough_devices(asked, profile_name, profile.devices_per_node)
    if spec.compute.strategy in ZERO and not has_zero(request):
        return no_fp16(spec.compute.strategy, profile_name)
    plan = first_fit(request)
    if plan is not None:
        return plan
    usable = [topology for topology in topologies(request) if splits_batch(request, topology)]
    if not usable:
        smallest = min(topologies(request), key=lambda topology: topology.world)
        return batch_too_small(spec, smallest.nodes, smallest.devices, request.group)
    return _too_large(request, max(usable, key=lambda topology: topology.world))


def _too_large(request: PlanRequest, largest: Topology) -> Failure:
    """Why not even the largest topology fits."""
    least, every = least_micro(request), strategies(request, largest)
    memory = min((_memory(request, largest, each, least) for each in every), key=_total)
    profile, name = request.profile, request.profile_name
    ways = remedies(request.spec, profile, lambda s, p: _fits(request, s, p))
    if memory.total <= memory.available:
        need = min(_host(request, largest, each) for each in every)
        return host_too_small(name, profile, need, ways)
    return does_not_fit(
        request.spec, request.model, name, profile, largest.world, memory.total, ways
    )


def first_fit(request: PlanRequest) -> TrainPlan | None:
    """The first plan that fits, in the order of this module."""
    for topology in topologies(request):
        if not splits_batch(request, topology):
            continue
        for strategy in strategies(request, topology):
            if not host_holds(request, topology, strategy):
                continue
            micro = micro_batch(request, topology, strategy)
            if micro is not None:
                return _plan(request, topology, strategy, micro)
    return None


def topologies(request: PlanRequest) -> Iterator[Topology]:
    """Every topology that may be chosen, cheapest first.

    Who asks for several nodes means whole ones, so there the order is the other way round.
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
            counts = ladder(profile.devices_per_node)
            yield from (
                Topology(nodes, devices) for devices in (counts[::-1] if nodes > 1 else counts)
            )


def ladder(most: int) -> list[int]:
    """1, 2, 4 … up to `most`, and `most` itself."""
    steps = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return steps if steps[-1] == most else [*steps, most]


def strategies(request: PlanRequest, topology: Topology) -> list[Strategy]:
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
        if allows(wire, compute__strategy=each) and (each not in ZERO or has_zero(request))
    ]
    # On one device there is nothing to divide: only offload makes the others save memory.
    return allowed[:1] if topology.world == 1 and not spec.compute.offload else allowed


def has_zero(request: PlanRequest) -> bool:
    """Whether DeepSpeed knows the number format: there is no fp16 on a CPU."""
    return request.device == "cuda" or request.spec.training.precision != "fp16"


def splits_batch(request: PlanRequest, topology: Topology) -> bool:
    """Whether every process gets at least one micro-batch of an optimizer step."""
    return accumulation(request, topology, least_micro(request)) > 0


def accumulation(request: PlanRequest, topology: Topology, micro: int) -> int:
    """Forward passes per optimizer step, as many as the batch has room for in whole groups."""
    together = topology.world * micro
    whole_groups = request.group // math.gcd(request.group, together)
    return request.spec.training.batch_size // together // whole_groups * whole_groups


def host_holds(request: PlanRequest, topology: Topology, strategy: Strategy) -> bool:
    """Whether loading, copies for checkpoints and what is offloaded fit into the host memory of
    the profile, which limits the pods of an accelerator pool."""
    return _host(request, topology, strategy) <= whole(request.profile.host_memory_per_device)


def _host(request: PlanRequest, topology: Topology, strategy: Strategy) -> int:
    """Host memory that one process takes, in bytes; on a CPU pool there is no other memory."""
    if request.device == "cpu":
        return 0
    held = host_bytes(request.model, request.load, strategy, topology.world, topology.devices)
    return held + CPU_OVERHEAD


def least_micro(request: PlanRequest) -> int:
    """The smallest micro-batch that is allowed."""
    return request.spec.training.micro_batch_size or 1


def micro_batch(request: PlanRequest, topology: Topology, strategy: Strategy) -> int | None:
    """The largest power of two that divides a process's share of the batch and fits."""
    share = request.spec.training.batch_size // topology.world
    asked = request.spec.training.micro_batch_size
    candidates = [asked] if asked else [2**p for p in range(share.bit_length(), -1, -1)]
    for micro in candidates:
        if (asked is None and share % micro) or not accumulation(request, topology, micro):
            continue
        need = _memory(request, topology, strategy, micro)
        if need.total <= need.available:
            return micro
    return None


def _memory(
    request: PlanRequest, topology: Topology, strategy: Strategy, micro: int
) -> MemoryEstimate:
    available = whole(request.profile.memory_per_device)
    return estimate(request.model, request.load, strategy, topology.world, micro, available)


def _total(memory: MemoryEstimate) -> int:
    return memory.total


def _plan(request: PlanRequest, topology: Topology, strategy: Strategy, micro: int) -> TrainPlan:
    training = request.spec.training
    passes = accumulation(request, topology, micro)
    batch = micro * passes * topology.world
    steps = _steps(request, batch)
    memory = _memory(request, topology, strategy, micro)
    return TrainPlan(
        profile=request.profile_name,
        nodes=topology.nodes,
        gpus_per_node=topology.devices,
        world_size=topology.world,
        device=request.device,
        strategy=strategy,
        offload=request.spec.compute.offload,
        peak_flops=request.profile.peak_flops_per_device,
        micro_batch_size=micro,
        gradient_accumulation=passes,
        batch_size=batch,
        total_steps=min(steps, training.max_steps or steps),
        learning_rate=training.learning_rate or default_learning_rate(request.spec),
        memory=memory,
        reason=_reason(request, topology, strategy, micro, passes, memory),
    )


def _steps(request: PlanRequest, batch: int) -> int:
    """Optimizer steps of all epochs; GRPO's data are prompts, and it learns several times from the
    same answers where the job says so."""
    spec = request.spec
    updates = spec.grpo.updates if spec.objective == "GRPO" and spec.grpo else 1
    a_pass = math.ceil(request.data.train_sequences * request.group / batch)
    return a_pass * spec.training.epochs * updates


def _reason(
    request: PlanRequest,
    topology: Topology,
    strategy: Strategy,
    micro: int,
    passes: int,
    memory: MemoryEstimate,
) -> str:
    asked = request.spec.training.batch_size
    batch = micro * passes * topology.world
    away = " and offload" if request.spec.compute.offload else ""
    text = (
        f"{request.spec.method.type} with {strategy}{away} on {topology.nodes} x {topology.devices} "
        f"{request.device} of {request.profile_name} takes {size_text(memory.total)} of "
        f"{size_text(memory.available)} each; batch {batch} = {topology.world} x {micro} x "
        f"{passes}"
    )
    if batch != asked:
        text += f" instead of {asked}, which {topology.world} x {micro} does not divide"
    return text


def _fits(request: PlanRequest, spec: FineTuneJobSpec, profile: AcceleratorProfileSpec) -> bool:
    return first_fit(replace(request, spec=spec, profile=profile)) is not None
