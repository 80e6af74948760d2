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
from finetune_operator.planner.load import Load, load_of
from finetune_operator.planner.memory import CPU_OVERHEAD, estimate, host_bytes
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
class Question:
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
    def load(self) -> Load:
        """What decides the memory of one step."""
        return load_of(self.spec, self.data, self.reward, self.device)


@dataclass(frozen=True)
class Shape:
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

    The same question always has the same answer, and more memory never turns a plan into a
    refusal.
    """
    question = Question(spec, model, data, profile_name, profile, reward)
    if data.train_sequences == 0:
        return empty_dataset()
    asked = spec.compute.gpus_per_node or 0
    if question.device == "cuda" and asked > profile.devices_per_node:
        return not_enough_devices(asked, profile_name, profile.devices_per_node)
    if spec.compute.strategy in ZERO and not has_zero(question):
        return no_fp16(spec.compute.strategy, profile_name)
    plan = first_fit(question)
    if plan is not None:
        return plan
    usable = [shape for shape in shapes(question) if splits_batch(question, shape)]
    if not usable:
        smallest = min(shapes(question), key=lambda shape: shape.world)
        return batch_too_small(spec, smallest.nodes, smallest.devices, question.group)
    return _too_large(question, max(usable, key=lambda shape: shape.world))


def _too_large(question: Question, largest: Shape) -> Failure:
    """Why not even the largest shape fits."""
    least, every = least_micro(question), strategies(question, largest)
    memory = min((_memory(question, largest, each, least) for each in every), key=_total)
    profile, name = question.profile, question.profile_name
    ways = remedies(question.spec, profile, lambda s, p: _fits(question, s, p))
    if memory.total <= memory.available:
        need = min(_host(question, largest, each) for each in every)
        return host_too_small(name, profile, need, ways)
    return does_not_fit(
        question.spec, question.model, name, profile, largest.world, memory.total, ways
    )


def first_fit(question: Question) -> TrainPlan | None:
    """The first plan that fits, in the order of this module."""
    for shape in shapes(question):
        if not splits_batch(question, shape):
            continue
        for strategy in strategies(question, shape):
            if not host_holds(question, shape, strategy):
                continue
            micro = micro_batch(question, shape, strategy)
            if micro is not None:
                return _plan(question, shape, strategy, micro)
    return None


def shapes(question: Question) -> Iterator[Shape]:
    """Every shape that may be chosen, cheapest first.

    Who asks for several nodes means whole ones, so there the order is the other way round.
    """
    compute, profile = question.spec.compute, question.profile
    if compute.nodes is not None:
        node_counts: Sequence[int] = [compute.nodes]
    elif question.device == "cpu":
        node_counts = [1]
    else:
        node_counts = range(1, profile.max_nodes + 1)
    for nodes in node_counts:
        if compute.gpus_per_node is not None:
            yield Shape(nodes, compute.gpus_per_node)
        elif nodes > 1 and compute.nodes is None:
            yield Shape(nodes, profile.devices_per_node)
        else:
            counts = ladder(profile.devices_per_node)
            yield from (
                Shape(nodes, devices) for devices in (counts[::-1] if nodes > 1 else counts)
            )


def ladder(most: int) -> list[int]:
    """1, 2, 4 … up to `most`, and `most` itself."""
    steps = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return steps if steps[-1] == most else [*steps, most]


def strategies(question: Question, shape: Shape) -> list[Strategy]:
    """Strategies to try, the one that communicates least first."""
    spec = question.spec
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
        if allows(wire, compute__strategy=each) and (each not in ZERO or has_zero(question))
    ]
    # On one device there is nothing to divide: only offload makes the others save memory.
    return allowed[:1] if shape.world == 1 and not spec.compute.offload else allowed


def has_zero(question: Question) -> bool:
    """Whether DeepSpeed knows the number format: there is no fp16 on a CPU."""
    return question.device == "cuda" or question.spec.training.precision != "fp16"


def splits_batch(question: Question, shape: Shape) -> bool:
    """Whether every process gets at least one micro-batch of an optimizer step."""
    return accumulation(question, shape, least_micro(question)) > 0


def accumulation(question: Question, shape: Shape, micro: int) -> int:
    """Forward passes per optimizer step, as many as the batch has room for in whole groups."""
    together = shape.world * micro
    whole_groups = question.group // math.gcd(question.group, together)
    return question.spec.training.batch_size // together // whole_groups * whole_groups


def host_holds(question: Question, shape: Shape, strategy: Strategy) -> bool:
    """Whether loading, copies for checkpoints and what is offloaded fit into the host memory of
    the profile, which limits the pods of an accelerator pool."""
    return _host(question, shape, strategy) <= whole(question.profile.host_memory_per_device)


def _host(question: Question, shape: Shape, strategy: Strategy) -> int:
    """Host memory that one process takes, in bytes; on a CPU pool there is no other memory."""
    if question.device == "cpu":
        return 0
    held = host_bytes(question.model, question.load, strategy, shape.world, shape.devices)
    return held + CPU_OVERHEAD


def least_micro(question: Question) -> int:
    """The smallest micro-batch that is allowed."""
    return question.spec.training.micro_batch_size or 1


def micro_batch(question: Question, shape: Shape, strategy: Strategy) -> int | None:
    """The largest power of two that divides a process's share of the batch and fits."""
    share = question.spec.training.batch_size // shape.world
    asked = question.spec.training.micro_batch_size
    candidates = [asked] if asked else [2**p for p in range(share.bit_length(), -1, -1)]
    for micro in candidates:
        if (asked is None and share % micro) or not accumulation(question, shape, micro):
            continue
        need = _memory(question, shape, strategy, micro)
        if need.total <= need.available:
            return micro
    return None


def _memory(question: Question, shape: Shape, strategy: Strategy, micro: int) -> MemoryEstimate:
    available = whole(question.profile.memory_per_device)
    return estimate(question.model, question.load, strategy, shape.world, micro, available)


def _total(memory: MemoryEstimate) -> int:
    return memory.total


def _plan(question: Question, shape: Shape, strategy: Strategy, micro: int) -> TrainPlan:
    training = question.spec.training
    passes = accumulation(question, shape, micro)
    batch = micro * passes * shape.world
    steps = _steps(question, batch)
    memory = _memory(question, shape, strategy, micro)
    return TrainPlan(
        profile=question.profile_name,
        nodes=shape.nodes,
        gpus_per_node=shape.devices,
        world_size=shape.world,
        device=question.device,
        strategy=strategy,
        offload=question.spec.compute.offload,
        peak_flops=question.profile.peak_flops_per_device,
        micro_batch_size=micro,
        gradient_accumulation=passes,
        batch_size=batch,
        total_steps=min(steps, training.max_steps or steps),
        learning_rate=training.learning_rate or default_learning_rate(question.spec),
        memory=memory,
        reason=_reason(question, shape, strategy, micro, passes, memory),
    )


def _steps(question: Question, batch: int) -> int:
    """Optimizer steps of all epochs; GRPO's data are prompts, and it learns several times from the
    same answers where the job says so."""
    spec = question.spec
    updates = spec.grpo.updates if spec.objective == "GRPO" and spec.grpo else 1
    a_pass = math.ceil(question.data.train_sequences * question.group / batch)
    return a_pass * spec.training.epochs * updates


def _reason(
    question: Question,
    shape: Shape,
    strategy: Strategy,
    micro: int,
    passes: int,
    memory: MemoryEstimate,
) -> str:
    asked = question.spec.training.batch_size
    batch = micro * passes * shape.world
    away = " and offload" if question.spec.compute.offload else ""
    text = (
        f"{question.spec.method.type} with {strategy}{away} on {shape.nodes} x {shape.devices} "
        f"{question.device} of {question.profile_name} takes {size_text(memory.total)} of "
        f"{size_text(memory.available)} each; batch {batch} = {shape.world} x {micro} x "
        f"{passes}"
    )
    if batch != asked:
        text += f" instead of {asked}, which {shape.world} x {micro} does not divide"
    return text


def _fits(question: Question, spec: FineTuneJobSpec, profile: AcceleratorProfileSpec) -> bool:
    return first_fit(replace(question, spec=spec, profile=profile)) is not None
