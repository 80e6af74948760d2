"""Which devices, which strategy, which micro-batch: the cheapest way to train that fits.

What the job says is honoured; the rest is searched in a fixed order and the first plan that fits
is taken: few devices before many, one node before several, then the strategy that communicates
least. Data is spread over more devices than memory asks for only when the job says so, because
nobody wants to pay for eight devices by leaving a field out.

Order of strategies on several devices: DDP, ZeRO-2, then full sharding; FSDP for Full, because
it keeps fp32 master weights of its own shards, and ZeRO-3 for LoRA, because it gathers frozen
and trained weights of different types one by one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import DataFacts, Failure, MemoryEstimate, ModelFacts, Strategy, TrainPlan

from finetune_operator.planner.memory import Load, estimate
from finetune_operator.planner.quantity import gibibytes, whole
from finetune_operator.planner.refusal import (
    batch_too_small,
    does_not_fit,
    empty_dataset,
    not_enough_devices,
    remedies,
)

DEFAULT_LEARNING_RATE = {"LoRA": 1e-4, "Full": 1e-5}


@dataclass(frozen=True)
class Question:
    """What is to be planned."""

    spec: FineTuneJobSpec
    model: ModelFacts
    data: DataFacts
    profile_name: str
    profile: AcceleratorProfileSpec

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """What the processes compute on."""
        return "cuda" if self.profile.resource_name else "cpu"

    @property
    def load(self) -> Load:
        """What decides the memory of one step."""
        training = self.spec.training
        sequence = training.max_sequence_length
        if not training.packing:
            sequence = min(sequence, max(1, self.data.longest_example))
        return Load(
            method=self.spec.method,
            precision=training.precision,
            checkpointing=training.gradient_checkpointing,
            sequence=sequence,
            device=self.device,
        )


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
) -> TrainPlan | Failure:
    """The plan, or why there is none: DoesNotFit, BatchTooSmall, NotEnoughDevices, EmptyDataset.

    The same question always has the same answer, and more memory never turns a plan into a
    refusal.
    """
    question = Question(spec, model, data, profile_name, profile)
    if data.train_sequences == 0:
        return empty_dataset()
    asked = spec.compute.gpus_per_node or 0
    if question.device == "cuda" and asked > profile.devices_per_node:
        return not_enough_devices(asked, profile_name, profile.devices_per_node)
    plan = first_fit(question)
    if plan is not None:
        return plan
    usable = [shape for shape in shapes(question) if splits_batch(question, shape)]
    if not usable:
        smallest = min(shapes(question), key=lambda shape: shape.world)
        return batch_too_small(spec, smallest.nodes, smallest.devices)
    largest = max(usable, key=lambda shape: shape.world)
    need = min(
        estimate(model, question.load, strategy, largest.world, least_micro(question), 0).total
        for strategy in strategies(question, largest)
    )
    alternatives = remedies(spec, profile, lambda s, p: _fits(question, s, p))
    return does_not_fit(spec, model, profile_name, profile, largest.world, need, alternatives)


def first_fit(question: Question) -> TrainPlan | None:
    """The first plan that fits, in the order of this module."""
    for shape in shapes(question):
        if not splits_batch(question, shape):
            continue
        for strategy in strategies(question, shape):
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
    if question.spec.compute.strategy != "Auto":
        return [question.spec.compute.strategy]
    if shape.world == 1:
        return ["DDP"]
    return ["DDP", "ZeRO2", "FSDP" if question.spec.method.type == "Full" else "ZeRO3"]


def splits_batch(question: Question, shape: Shape) -> bool:
    """Whether every process gets at least one micro-batch of an optimizer step."""
    return question.spec.training.batch_size >= shape.world * least_micro(question)


def least_micro(question: Question) -> int:
    """The smallest micro-batch that is allowed."""
    return question.spec.training.micro_batch_size or 1


def micro_batch(question: Question, shape: Shape, strategy: Strategy) -> int | None:
    """The largest power of two that divides a process's share of the batch and fits."""
    share = question.spec.training.batch_size // shape.world
    asked = question.spec.training.micro_batch_size
    candidates = [asked] if asked else [2**p for p in range(share.bit_length(), -1, -1)]
    for micro in candidates:
        if asked is None and share % micro:
            continue
        need = _memory(question, shape, strategy, micro)
        if need.total <= need.available:
            return micro
    return None


def _memory(question: Question, shape: Shape, strategy: Strategy, micro: int) -> MemoryEstimate:
    available = whole(question.profile.memory_per_device)
    return estimate(question.model, question.load, strategy, shape.world, micro, available)


def _plan(question: Question, shape: Shape, strategy: Strategy, micro: int) -> TrainPlan:
    training = question.spec.training
    accumulation = training.batch_size // shape.world // micro
    batch = micro * accumulation * shape.world
    steps = math.ceil(question.data.train_sequences / batch) * training.epochs
    memory = _memory(question, shape, strategy, micro)
    return TrainPlan(
        profile=question.profile_name,
        nodes=shape.nodes,
        gpus_per_node=shape.devices,
        world_size=shape.world,
        device=question.device,
        strategy=strategy,
        micro_batch_size=micro,
        gradient_accumulation=accumulation,
        batch_size=batch,
        total_steps=min(steps, training.max_steps or steps),
        learning_rate=training.learning_rate or DEFAULT_LEARNING_RATE[question.spec.method.type],
        memory=memory,
        reason=_reason(question, shape, strategy, micro, accumulation, memory),
    )


def _reason(
    question: Question,
    shape: Shape,
    strategy: Strategy,
    micro: int,
    accumulation: int,
    memory: MemoryEstimate,
) -> str:
    asked = question.spec.training.batch_size
    batch = micro * accumulation * shape.world
    text = (
        f"{question.spec.method.type} with {strategy} on {shape.nodes} x {shape.devices} "
        f"{question.device} of {question.profile_name} takes {gibibytes(memory.total)} of "
        f"{gibibytes(memory.available)} each; batch {batch} = {shape.world} x {micro} x "
        f"{accumulation}"
    )
    if batch != asked:
        text += f" instead of {asked}, which {shape.world} x {micro} does not divide"
    return text


def _fits(question: Question, spec: FineTuneJobSpec, profile: AcceleratorProfileSpec) -> bool:
    return first_fit(replace(question, spec=spec, profile=profile)) is not None
