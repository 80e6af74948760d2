"""How much memory training takes on one device, in bytes.

States of model and optimizer follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1
and figure 1): with 16-bit weights each trained parameter costs 2 (weight) + 2 (gradient) + 12
(fp32 master weight and the two AdamW moments). With fp32 weights it is 4 + 4 + 8. Adapters are
trained in fp32 beside frozen weights of 2 or 4 bytes each, or of half a byte under QLoRA (Dettmers
et al. 2023, arXiv 2305.14314, section 3: blocks of 64 weights share a scale of 32 bits, or of 8
bits and a second scale for 256 of them).

The estimate is meant to be a little too high: a refused plan costs a minute, an out-of-memory
error in the middle of a run costs a day.
"""

from dataclasses import dataclass

from finetune_api.finetunejob import Quantization
from finetune_api.run import MemoryEstimate, ModelFacts, Strategy

from finetune_operator.planner.activations import activation_bytes
from finetune_operator.planner.memory_inputs import MemoryInputs
from finetune_operator.planner.parameters import quantized_parameters, trained_parameters

CUDA_OVERHEAD = 3 * 1024**3 // 2
"""CUDA context, cuBLAS workspace and NCCL buffers of one process."""
CPU_OVERHEAD = 3 * 1024**3 // 2
"""Interpreter, libraries and allocator of one process: training SmolLM2-135M with LoRA took 1.9 to
2.6 GB of resident memory for each rank, DDP and FSDP2, where the tensors come to 0.6 GB."""
FRAGMENTATION = 0.10
"""Share of the tensors that the caching allocator loses."""
MOMENTS = {
    "AdamW": 8,
    "AdamW8bit": 2,
    "PagedAdamW": 0,
    "PagedAdamW8bit": 0,
    "Adafactor": 0,
}
"""Bytes of optimizer states for each trained parameter; paged ones leave a device that is full, and
Adafactor keeps a number for each row and column only (Shazeer and Stern 2018, arXiv 1804.04235)."""
IMPORTANCE = 12
"""Bytes for each parameter by which AdaLoRA ranks: importance, its mean and its uncertainty (Zhang
et al. 2023, arXiv 2303.10512, section 3.2)."""
SAVED = {"AdamW": 12, "AdamW8bit": 6, "PagedAdamW": 12, "PagedAdamW8bit": 6, "Adafactor": 4}
"""Bytes of fp32 weight and optimizer states in a checkpoint for each trained parameter."""
SUB_GROUP = 10**9
"""Weights that ZeRO-3 updates at a time, DeepSpeed's default."""


@dataclass(frozen=True)
class States:
    """Bytes of model and optimizer before they are divided among devices."""

    weights: int
    gradients: int
    optimizer: int


def states(model: ModelFacts, load: MemoryInputs) -> States:
    """What model and optimizer hold between two steps."""
    size, trained = load.number_bytes, trained_parameters(model, load.method)
    moments = MOMENTS[load.optimizer] * trained
    if load.optimizer == "Adafactor":
        moments = 8 * trained // model.hidden_size
    if load.method.type == "Full":
        masters = 4 * trained if size == 2 else 0
        return States(size * trained, size * trained, moments + masters)
    if load.method.type == "AdaLoRA":
        moments += IMPORTANCE * trained
    return States(frozen_bytes(model, load) + 4 * trained, 4 * trained, moments)


def frozen_bytes(model: ModelFacts, load: MemoryInputs) -> int:
    """The base model beside adapters."""
    if load.method.type != "QLoRA":
        return load.number_bytes * model.parameters
    quantized = quantized_parameters(model)
    double = (load.method.quantization or Quantization()).double
    scales = quantized // 64 + quantized // (64 * 256) * 4 if double else quantized // 64 * 4
    return quantized // 2 + scales + load.number_bytes * (model.parameters - quantized)


def gathered_bytes(model: ModelFacts, load: MemoryInputs) -> int:
    """Full weights that a sharded run holds at once: two blocks (one is prefetched), embedding."""
    embedding = load.number_bytes * model.vocabulary * model.hidden_size
    blocks = max(0, states(model, load).weights - embedding)
    return 2 * blocks // model.layers + embedding


def estimate(
    model: ModelFacts,
    load: MemoryInputs,
    strategy: Strategy,
    world: int,
    micro_batch: int,
    available: int,
) -> MemoryEstimate:
    """Memory on one of `world` devices.

    ZeRO-1 divides the optimizer states, ZeRO-2 the gradients too, ZeRO-3 and FSDP the weights too.
    With offload the optimizer states (with ZeRO-3 the weights too, with FSDP all shards) are in
    host memory, which on a CPU pool is the same memory.
    """
    held = _divided(model, load, strategy, world)
    kept = _on_device(model, load, strategy, world)
    activations = activation_bytes(model, load, micro_batch)
    passing = activations + load.beside
    if strategy in ("ZeRO3", "FSDP"):
        whole = states(model, load).weights
        passing += min(whole - kept.weights, gathered_bytes(model, load))
    if strategy == "DDP" and load.method.type == "Full" and load.number_bytes == 2:
        # Autocast keeps a 16-bit copy of the fp32 weights until the forward pass has ended.
        passing += held.weights
    stepping = load.beside + widened_bytes(model, load, strategy, world)
    tensors = kept.weights + kept.gradients + kept.optimizer + max(passing, stepping)
    if strategy == "ZeRO3" and load.method.type == "QLoRA":
        # Weights are brought to four bits on the device and divided afterwards.
        tensors = max(tensors, states(model, load).weights)
    overhead = CUDA_OVERHEAD if load.device == "cuda" else CPU_OVERHEAD
    return MemoryEstimate(
        weights=kept.weights + load.beside,
        gradients=kept.gradients,
        optimizer=kept.optimizer,
        activations=activations,
        total=round(tensors * (1 + FRAGMENTATION)) + overhead,
        available=available,
    )


def widened_bytes(model: ModelFacts, load: MemoryInputs, strategy: Strategy, world: int) -> int:
    """The fp32 copy of its part of the 16-bit gradients that DeepSpeed makes for the optimizer's
    step, when activations have gone; ZeRO-3 makes it for so many weights at a time."""
    sixteen = load.number_bytes == 2 and (load.method.type == "Full" or load.precision == "fp16")
    if load.offload or strategy in ("DDP", "FSDP") or not sixteen:
        return 0
    part = -(-trained_parameters(model, load.method) // world)
    return 4 * (min(part, SUB_GROUP) if strategy == "ZeRO3" else part)


def host_bytes(
    model: ModelFacts, load: MemoryInputs, strategy: Strategy, world: int, on_node: int
) -> int:
    """Host memory of one of `on_node` processes that share a pod, `world` in all, in bytes.

    It holds a copy of the process's share of a checkpoint while that is written, and what is
    offloaded; before that, under FSDP, one process loads the whole model.
    """
    trained = trained_parameters(model, load.method)
    copy = -(-SAVED[load.optimizer] * trained // world)
    whole = 4 * trained if load.method.type == "Full" else states(model, load).weights
    loading = -(-whole // on_node) if strategy == "FSDP" else 0
    return max(loading, copy + offloaded_bytes(model, load, strategy, world))


def offloaded_bytes(model: ModelFacts, load: MemoryInputs, strategy: Strategy, world: int) -> int:
    """What offload takes of one process's host memory, in bytes; 0 without offload.

    With ZeRO these are the optimizer states and fp32 gradients, with ZeRO-3 the weights too.
    """
    if not load.offload or strategy == "DDP":
        return 0
    held = _divided(model, load, strategy, world)
    if strategy == "FSDP":
        return held.weights + held.gradients + held.optimizer
    gradients = -(-4 * trained_parameters(model, load.method) // world)
    return held.optimizer + gradients + (held.weights if strategy == "ZeRO3" else 0)


def _on_device(model: ModelFacts, load: MemoryInputs, strategy: Strategy, world: int) -> States:
    held = _divided(model, load, strategy, world)
    if load.device == "cpu" or not offloaded_bytes(model, load, strategy, world):
        return held
    if strategy == "FSDP":
        return States(0, 0, 0)
    return States(0 if strategy == "ZeRO3" else held.weights, held.gradients, 0)


def _divided(model: ModelFacts, load: MemoryInputs, strategy: Strategy, world: int) -> States:
    whole = states(model, load)
    shards = {
        "DDP": (1, 1, 1),
        "ZeRO1": (1, 1, world),
        "ZeRO2": (1, world, world),
        "ZeRO3": (world, world, world),
        "FSDP": (world, world, world),
    }[strategy]
    parts = zip((whole.weights, whole.gradients, whole.optimizer), shards, strict=True)
    return States(*(-(-number // among) for number, among in parts))


def serving_bytes(model: ModelFacts, devices: int) -> int:
    """Memory on each of `devices` devices that share a served model in bf16.

    Weights are divided; what is left must hold at least one sequence of 4,096 tokens (or the
    model's context, where that is shorter) in the key-value cache, and the engine itself.
    """
    head = model.hidden_size // model.attention_heads
    cached = min(model.context_length, 4096)
    cache = 2 * 2 * model.layers * model.key_value_heads * head * cached
    return round((2 * model.parameters + cache) / devices * 1.1) + 2 * 1024**3
