"""Models, data and pools for the planner's tests."""

from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.finetunejob import FineTuneJobSpec


def model(
    parameters: int, layers: int, width: int, inner: int, heads: tuple[int, int], vocabulary: int
) -> ModelFacts:
    """A Llama of this size; `heads` are query heads and key-value heads."""
    return ModelFacts(
        architecture="LlamaForCausalLM",
        parameters=parameters,
        layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        attention_heads=heads[0],
        key_value_heads=heads[1],
        vocabulary=vocabulary,
        context_length=8192,
        weight_bytes=2 * parameters,
        folder="snapshot",
    )


LLAMA_8B = model(8030261248, 32, 4096, 14336, (32, 8), 128256)
LLAMA_70B = model(70553706496, 80, 8192, 28672, (64, 8), 128256)
SMOL = model(134515008, 30, 576, 1536, (9, 3), 49152)
DATA = DataFacts(
    format="chat",
    train_examples=1000,
    eval_examples=100,
    train_tokens=1000000,
    eval_tokens=100000,
    train_sequences=500,
    longest_example=900,
    digest="sha256:" + "0" * 64,
)
H100 = AcceleratorProfileSpec(
    resource_name="nvidia.com/gpu",
    devices_per_node=8,
    max_nodes=1,
    memory_per_device="80Gi",
    host_memory_per_device="180Gi",
)
CPU = AcceleratorProfileSpec(devices_per_node=1, max_nodes=2, memory_per_device="4Gi")


def spec(**fields: Any) -> FineTuneJobSpec:
    """The smallest job, with these fields of its spec."""
    smallest = {"model": {"uri": "hf://a/b"}, "dataset": {"train": [{"uri": "hf://datasets/c/d"}]}}
    return FineTuneJobSpec.model_validate({**smallest, **fields})
