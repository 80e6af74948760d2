"""Properties of every plan, for every job, model, data set and pool."""

import math
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.combinations import ALL_VALUES, refusal_messages
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.train_plan import TrainPlan
from finetune_operator.planner.quantity import floor_quantity
from finetune_operator.planner.training_plan import plan_training
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.unit.planner.facts import DATA, model, spec

MODELS = st.builds(
    lambda layers, heads, group, head, ratio, vocabulary: model(
        parameters=layers * (4 + 3 * ratio) * (heads * group * head) ** 2
        + vocabulary * heads * group * head,
        layers=layers,
        width=heads * group * head,
        inner=ratio * heads * group * head,
        heads=(heads * group, heads),
        vocabulary=vocabulary,
    ),
    layers=st.integers(1, 90),
    heads=st.integers(1, 8),
    group=st.integers(1, 8),
    head=st.sampled_from([16, 64, 128]),
    ratio=st.integers(2, 4),
    vocabulary=st.integers(100, 200000),
)
PROFILES = st.tuples(
    st.sampled_from([None, "nvidia.com/gpu"]),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 200),
).map(
    lambda drawn: AcceleratorProfileSpec(
        resource_name=drawn[0],
        devices_per_node=drawn[1],
        max_nodes=drawn[2],
        memory_per_device=f"{drawn[3]}Gi",
    )
)
DATASETS = st.integers(1, 100000).map(
    lambda rows: DATA.model_copy(update={"train_sequences": rows})
)


REASONS = (
    "DoesNotFit",
    "BatchTooSmall",
    "NotEnoughDevices",
    "HostMemoryTooSmall",
    "PrecisionUnsupported",
)


def spec_with_strategy(job: FineTuneJobSpec, strategy: str) -> dict[str, Any]:
    wire = job.to_wire()
    return {**wire, "compute": {**wire["compute"], "strategy": strategy}}


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a spec that matter to the planner."""
    compute: dict[str, Any] = {
        "strategy": draw(st.sampled_from(["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"]))
    }
    for field, most in (("nodes", 4), ("gpusPerNode", 8)):
        if draw(st.booleans()):
            compute[field] = draw(st.integers(1, most))
    training: dict[str, Any] = {
        "batchSize": draw(st.integers(1, 300)),
        "maxSequenceLength": draw(st.integers(16, 8192)),
        "gradientCheckpointing": draw(st.sampled_from([None, False, True])),
        "selectiveCheckpointing": draw(st.booleans()),
        "precision": draw(st.sampled_from(["bf16", "fp16", "fp32"])),
        "optimizer": draw(st.sampled_from(["AdamW", "AdamW8bit", "PagedAdamW", "Adafactor"])),
        "epochs": draw(st.integers(1, 5)),
    }
    if draw(st.booleans()):
        training["microBatchSize"] = draw(st.integers(1, 16))
    if draw(st.booleans()):
        training["maxSteps"] = draw(st.integers(1, 1000))
    compute["offload"] = draw(st.booleans())
    method = {"type": draw(st.sampled_from(ALL_VALUES["method.type"]))}
    objective = draw(st.sampled_from(ALL_VALUES["objective"]))
    grpo: dict[str, Any] = {
        "rewards": [{"type": "length"}],
        "generations": draw(st.integers(2, 16)),
    }
    grpo["updates"] = draw(st.integers(1, 3))
    if objective == "GRPO":
        training["batchSize"] = draw(st.integers(1, 20)) * grpo["generations"]
    job = {"compute": compute, "training": training, "method": method, "objective": objective}
    job |= {"grpo": grpo} if objective == "GRPO" else {}
    assume(not refusal_messages(spec(**job).to_wire()))
    return job


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(MODELS, DATASETS, PROFILES, jobs())
def test_every_plan_fits_and_divides_the_batch_and_honours_the_job(
    facts: ModelFacts, data: DataFacts, profile: AcceleratorProfileSpec, fields: dict[str, Any]
) -> None:
    job = spec(**fields)
    plan = plan_training(job, facts, data, "pool", profile)
    assert plan == plan_training(job, facts, data, "pool", profile)
    if isinstance(plan, Failure):
        assert plan.reason in REASONS
        assert plan.remedy
        return
    assert plan.memory.total <= plan.memory.available == floor_quantity(profile.memory_per_device)
    assert plan.world_size == plan.nodes * plan.gpus_per_node
    product = plan.micro_batch_size * plan.gradient_accumulation * plan.world_size
    assert product == plan.batch_size <= job.training.batch_size
    prompts, updates = plan.batch_size, 1
    if job.objective == "GRPO":
        assert job.grpo
        assert plan.batch_size % job.grpo.generations == 0
        prompts, updates = plan.batch_size // job.grpo.generations, job.grpo.updates
    steps = math.ceil(data.train_sequences / prompts) * job.training.epochs * updates
    assert plan.total_steps == min(steps, job.training.max_steps or steps)
    assert plan.nodes == (job.compute.nodes or plan.nodes)
    assert plan.gpus_per_node == (job.compute.gpus_per_node or plan.gpus_per_node)
    assert job.compute.strategy in ("Auto", plan.strategy)
    assert not refusal_messages(spec_with_strategy(job, plan.strategy))
    assert plan.offload == job.compute.offload
    assert job.training.micro_batch_size in (None, plan.micro_batch_size)
    if job.compute.nodes is None:
        assert plan.nodes <= profile.max_nodes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(MODELS, DATASETS, PROFILES, jobs(), st.integers(1, 200))
def test_more_memory_never_turns_a_plan_into_a_refusal_or_takes_more_devices(
    facts: ModelFacts,
    data: DataFacts,
    profile: AcceleratorProfileSpec,
    fields: dict[str, Any],
    more: int,
) -> None:
    job = spec(**fields)
    plan = plan_training(job, facts, data, "pool", profile)
    gib = int(profile.memory_per_device.removesuffix("Gi")) + more
    larger = profile.model_copy(update={"memory_per_device": f"{gib}Gi"})
    if isinstance(plan, TrainPlan):
        again = plan_training(job, facts, data, "pool", larger)
        assert isinstance(again, TrainPlan)
        assert again.world_size <= plan.world_size
