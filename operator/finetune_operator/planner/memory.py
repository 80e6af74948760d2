"""How much memory training takes on one device, in bytes.

States of model and optimizer follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1
and figure 1): with bf16 weights each trained parameter costs 2 (weight) + 2 (gradient) + 12
(fp32 master weight and the two AdamW moments). With fp32 weights it is 4 + 4 + 8. LoRA freezes
the weights of the model (2 or 4 bytes each) and trains its adapters in fp32: 4 + 4 + 8.

Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, sections 4.1 and 5) for blocks with
grouped-query attention, a gated feed-forward layer and attention that never stores its scores.
The logits are counted three times: as computed, upcast to fp32, and their fp32 gradient.

The estimate is meant to be a little too high: a refused plan costs a minute, an out-of-memory
error in the middle of a run costs a day.
"""

from dataclasses import dataclass
from typing import Literal

from finetune_api.finetunejob import LoRA, Method
from finetune_api.run import MemoryEstimate, ModelFacts, Strategy

CUDA_OVERHEAD = 3 * 1024**3 // 2
"""CUDA context, cuBLAS workspace and NCCL buffers of one process."""
CPU_OVERHEAD = 3 * 1024**3 // 2
"""Interpreter, libraries and allocator of one process: training SmolLM2-135M with LoRA took 1.9 to
2.6 GB of resident memory for each rank, DDP and FSDP2, where the tensors come to 0.6 GB."""
FRAGMENTATION = 0.10
"""Share of the tensors that the caching allocator loses."""


@dataclass(frozen=True)
class Load:
    """What decides the memory of a training step besides the model."""

    method: Method
    precision: Literal["bf16", "fp32"]
    checkpointing: bool
    """Whether activations are recomputed."""
    sequence: int
    """Tokens of the longest row."""
    device: Literal["cuda", "cpu"]

    @property
    def number_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.precision == "bf16" else 4


def adapter_parameters(model: ModelFacts, lora: LoRA) -> int:
    """Trained parameters of LoRA: rank * (inputs + outputs) of every adapted linear layer.

    A target that is not one of Llama's names is counted as large as the largest layer.
    """
    width, inner = model.hidden_size, model.intermediate_size
    narrow = width * model.key_value_heads // model.attention_heads
    sizes = {
        "q_proj": 2 * width,
        "k_proj": width + narrow,
        "v_proj": width + narrow,
        "o_proj": 2 * width,
        "gate_proj": width + inner,
        "up_proj": width + inner,
        "down_proj": inner + width,
    }
    if "all-linear" in lora.target_modules:
        per_layer = sum(sizes.values())
    else:
        names = {name.rsplit(".", 1)[-1] for name in lora.target_modules}
        per_layer = sum(sizes.get(name, max(sizes.values())) for name in names)
    return lora.rank * per_layer * model.layers


def trainable_parameters(model: ModelFacts, method: Method) -> int:
    """Parameters that the optimizer changes."""
    if method.type == "Full":
        return model.parameters
    return adapter_parameters(model, method.lora or LoRA())


def activation_bytes(model: ModelFacts, load: Load, micro_batch: int) -> int:
    """Activations and logits of one micro-batch.

    One block stores, per token, 8.5 numbers per unit of width (attention 5.5, norms 2, input of
    the feed-forward layer 1) and 4 per unit of the gated layer; dropout before the adapters keeps
    a copy of each linear layer's input. With recomputation every block keeps its input only, and
    one block at a time is whole.
    """
    tokens = micro_batch * load.sequence
    width, inner, size = model.hidden_size, model.intermediate_size, load.number_bytes
    block = tokens * size * (17 * width // 2 + 4 * inner)
    if load.method.type == "LoRA" and (load.method.lora or LoRA()).dropout > 0:
        block += tokens * size * (6 * width + inner)
    mask = micro_batch * load.sequence**2 * size
    logits = tokens * model.vocabulary * (size + 4 + 4)
    if load.checkpointing:
        return model.layers * tokens * size * width + block + mask + logits
    return model.layers * block + mask + logits


def gathered_bytes(model: ModelFacts, load: Load) -> int:
    """Full weights that a sharded run holds at once: two blocks (one is prefetched), embedding."""
    embedding = model.vocabulary * model.hidden_size
    block = max(0, model.parameters - embedding) // model.layers
    return load.number_bytes * (2 * block + embedding)


def state_bytes(model: ModelFacts, load: Load) -> tuple[int, int, int]:
    """Weights, gradients and optimizer states before they are divided among devices."""
    size, trained = load.number_bytes, trainable_parameters(model, load.method)
    if load.method.type == "LoRA":
        return size * model.parameters + 4 * trained, 4 * trained, 8 * trained
    optimizer = 12 if load.precision == "bf16" else 8
    return size * trained, size * trained, optimizer * trained


def estimate(
    model: ModelFacts, load: Load, strategy: Strategy, world: int, micro_batch: int, available: int
) -> MemoryEstimate:
    """Memory on one of `world` devices.

    ZeRO-1 divides the optimizer states, ZeRO-2 the gradients too, ZeRO-3 and FSDP the weights too.
    """
    weights, gradients, optimizer = state_bytes(model, load)
    activations = activation_bytes(model, load, micro_batch)
    if strategy != "DDP":
        optimizer = -(-optimizer // world)
    if strategy in ("ZeRO2", "ZeRO3", "FSDP"):
        gradients = -(-gradients // world)
    tensors = gradients + optimizer + activations
    if strategy in ("ZeRO3", "FSDP"):
        whole, weights = weights, -(-weights // world)
        tensors += min(whole - weights, gathered_bytes(model, load))
    tensors += weights
    overhead = CUDA_OVERHEAD if load.device == "cuda" else CPU_OVERHEAD
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        total=round(tensors * (1 + FRAGMENTATION)) + overhead,
        available=available,
    )


def serving_bytes(model: ModelFacts, devices: int) -> int:
    """Memory on each of `devices` devices that share a served model in bf16.

    Weights are divided; what is left must hold at least one sequence of 4,096 tokens (or the
    model's context, where that is shorter) in the key-value cache, and the engine itself.
    """
    head = model.hidden_size // model.attention_heads
    cached = min(model.context_length, 4096)
    cache = 2 * 2 * model.layers * model.key_value_heads * head * cached
    return round((2 * model.parameters + cache) / devices * 1.1) + 2 * 1024**3
