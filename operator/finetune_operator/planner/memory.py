"""How much memory training takes on one device, in bytes.

States of model and optimizer follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1
and figure 1): with 16-bit weights each trained parameter costs 2 (weight) + 2 (gradient) + 12
(fp32 master weight and the two AdamW moments). With fp32 weights it costs 4 + 4 + 8. Adapters are
fp32; their frozen base takes 2 or 4 bytes for each weight, or half a byte under QLoRA (Dettmers et
al. 2023, arXiv 2305.14314, section 3: blocks of 64 weights share a scale of 32 bits, or of 8 bits
and a second scale for 256 of them).

The estimate errs on the high side: a refused plan costs a minute, an out-of-memory error in the
middle of a run costs a day.
"""

from dataclasses import dataclass

from finetune_api.facts import ModelFacts
from finetune_api.finetunejob import Quantization
from finetune_api.protocol import Strategy
from finetune_api.train_plan import MemoryEstimate

from finetune_operator.planner.activations import activation_bytes
from finetune_operator.planner.memory_inputs import MemoryInputs
from finetune_operator.planner.parameters import (
    key_width,
    quantized_parameters,
    saved_module_parameters,
    trainable_parameters,
)

CUDA_OVERHEAD = 3 * 1024**3 // 2
"""CUDA context, cuBLAS workspace and NCCL buffers of one process."""
CPU_OVERHEAD = 3 * 1024**3 // 2
"""Interpreter, libraries and allocator of one process: training SmolLM2-135M with LoRA took 1.9 to
2.6 GB of resident memory for each rank, DDP and FSDP2, where the tensors come to 0.6 GB."""
FRAGMENTATION = 0.10
"""Fraction of the tensors' memory that the caching allocator wastes."""
OPTIMIZER_BYTES = {
    "AdamW": 8,
    "AdamW8bit": 2,
    "PagedAdamW": 0,
    "PagedAdamW8bit": 0,
    "Adafactor": 0,
}
"""Bytes of optimizer states for each trained parameter. Paged states move to host memory when the
device is full, and Adafactor keeps a number for each row and column only (Shazeer and Stern 2018,
arXiv 1804.04235)."""
ADALORA_IMPORTANCE_BYTES = 12
"""Bytes for each parameter by which AdaLoRA ranks: importance, its mean and its uncertainty (Zhang
et al. 2023, arXiv 2303.10512, section 3.2)."""
CHECKPOINT_BYTES = {
    "AdamW": 12,
    "AdamW8bit": 6,
    "PagedAdamW": 12,
    "PagedAdamW8bit": 6,
    "Adafactor": 4,
}
"""Bytes of fp32 weight and optimizer states in a checkpoint for each trained parameter."""
SUB_GROUP_SIZE = 10**9
"""Weights that ZeRO-3 updates at a time, DeepSpeed's default `sub_group_size`."""


@dataclass(frozen=True)
class ModelStates:
    """Bytes of model and optimizer states."""

    weights: int
    gradients: int
    optimizer: int


def model_states(model: ModelFacts, inputs: MemoryInputs) -> ModelStates:
    """What model and optimizer hold between two steps, before sharding."""
    size, trained = inputs.dtype_bytes, trainable_parameters(model, inputs.method)
    optimizer = OPTIMIZER_BYTES[inputs.optimizer] * trained
    if inputs.optimizer == "Adafactor":
        optimizer = 8 * trained // model.hidden_size
    if inputs.method.type == "Full":
        master_weights = 4 * trained if size == 2 else 0
        return ModelStates(size * trained, size * trained, optimizer + master_weights)
    if inputs.method.type == "AdaLoRA":
        optimizer += ADALORA_IMPORTANCE_BYTES * trained
    return ModelStates(frozen_bytes(model, inputs) + 4 * trained, 4 * trained, optimizer)


def frozen_bytes(model: ModelFacts, inputs: MemoryInputs) -> int:
    """The frozen base model of adapters."""
    if inputs.method.type != "QLoRA":
        return inputs.dtype_bytes * model.parameters
    quantized = quantized_parameters(model)
    double = (inputs.method.quantization or Quantization()).double
    scales = quantized // 64 + quantized // (64 * 256) * 4 if double else quantized // 64 * 4
    return quantized // 2 + scales + inputs.dtype_bytes * (model.parameters - quantized)


def gathered_bytes(model: ModelFacts, inputs: MemoryInputs) -> int:
    """Full weights that a sharded run holds at once: two blocks (one is prefetched), embedding, and
    the fp32 copies of modulesToSave."""
    embedding = inputs.dtype_bytes * model.vocabulary * model.hidden_size
    copies = 4 * saved_module_parameters(model, inputs.method)
    blocks = max(0, model_states(model, inputs).weights - embedding - copies)
    return 2 * blocks // model.layers + embedding + copies


def estimate_memory(
    model: ModelFacts,
    inputs: MemoryInputs,
    strategy: Strategy,
    world_size: int,
    micro_batch: int,
    available: int,
) -> MemoryEstimate:
    """Memory on one of `world_size` devices.

    ZeRO-1 shards the optimizer states, ZeRO-2 the gradients too, ZeRO-3 and FSDP the weights too.
    With offload the optimizer states (with ZeRO-3 the weights and the fp32 sums of gradients too,
    with FSDP all shards) are in host memory, which on a CPU pool is the same memory.
    """
    shards = _shard_states(model, inputs, strategy, world_size)
    resident = _resident_states(model, inputs, strategy, world_size)
    activations = activation_bytes(model, inputs, micro_batch)
    forward = activations + inputs.reward_model_bytes
    if strategy in ("ZeRO3", "FSDP"):
        missing = model_states(model, inputs).weights - resident.weights
        forward += min(missing, gathered_bytes(model, inputs))
        # The gradient of a copy is complete until it is reduced.
        forward += 4 * saved_module_parameters(model, inputs.method)
    if strategy == "DDP" and inputs.method.type == "Full" and inputs.dtype_bytes == 2:
        # Autocast keeps a 16-bit copy of the fp32 weights until the forward pass has ended.
        forward += shards.weights
    step = inputs.reward_model_bytes + fp32_gradient_bytes(model, inputs, strategy, world_size)
    states = resident.weights + resident.gradients + resident.optimizer
    if inputs.device == "cpu":
        states += offload_buffer_bytes(model, inputs, strategy, world_size)
    if inputs.device == "cpu" or not (inputs.offload and strategy == "ZeRO3"):
        states += gradient_sum_bytes(model, inputs, strategy, world_size)
    tensors = states + max(forward, step)
    if strategy == "ZeRO3" and inputs.method.type == "QLoRA":
        # DeepSpeed quantizes all weights on the device before it shards them.
        tensors = max(tensors, model_states(model, inputs).weights)
    overhead = CUDA_OVERHEAD if inputs.device == "cuda" else CPU_OVERHEAD
    return MemoryEstimate(
        weights=resident.weights + inputs.reward_model_bytes,
        gradients=resident.gradients,
        optimizer=resident.optimizer,
        activations=activations,
        total=round(tensors * (1 + FRAGMENTATION)) + overhead,
        available=available,
    )


def gradient_sum_bytes(
    model: ModelFacts, inputs: MemoryInputs, strategy: Strategy, world_size: int
) -> int:
    """The fp32 sums of the bf16 gradients of a step's micro-batches, which ZeRO holds in addition.

    Every stage sums its shard in one buffer, and ZeRO-1 holds the sums of all weights until they
    are reduced into it. With offload ZeRO-3 keeps the buffer in host memory, the others do not
    (DeepSpeed 0.19.8, `_build_compact_grad_partition_buffer` and `grad_accum` in stage_1_and_2.py).
    """
    is_bf16 = inputs.precision == "bf16" and inputs.method.type == "Full"
    if strategy in ("DDP", "FSDP") or not is_bf16:
        return 0
    trained = trainable_parameters(model, inputs.method)
    shard = -(-trained // world_size)
    return 4 * (trained + shard if strategy == "ZeRO1" else shard)


def fp32_gradient_bytes(
    model: ModelFacts, inputs: MemoryInputs, strategy: Strategy, world_size: int
) -> int:
    """The fp32 copy of its shard of the 16-bit gradients that DeepSpeed makes for the optimizer
    step, when the activations are freed; ZeRO-3 copies SUB_GROUP_SIZE gradients at a time."""
    is_16_bit = inputs.dtype_bytes == 2 and (
        inputs.method.type == "Full" or inputs.precision == "fp16"
    )
    if inputs.offload or strategy in ("DDP", "FSDP") or not is_16_bit:
        return 0
    shard = -(-trainable_parameters(model, inputs.method) // world_size)
    return 4 * (min(shard, SUB_GROUP_SIZE) if strategy == "ZeRO3" else shard)


def host_bytes(
    model: ModelFacts,
    inputs: MemoryInputs,
    strategy: Strategy,
    world_size: int,
    local_world_size: int,
) -> int:
    """Host memory of one process, in bytes; `local_world_size` processes share a pod.

    The host holds a copy of the process's shard of a checkpoint while the trainer writes it, and
    the offloaded states; before that, under FSDP, one process of the pod loads the whole model.
    """
    trained = trainable_parameters(model, inputs.method)
    checkpoint_copy = -(-CHECKPOINT_BYTES[inputs.optimizer] * trained // world_size)
    is_full = inputs.method.type == "Full"
    loaded = 4 * trained if is_full else model_states(model, inputs).weights
    loading = -(-loaded // local_world_size) if strategy == "FSDP" else 0
    return max(loading, checkpoint_copy + offloaded_bytes(model, inputs, strategy, world_size))


def offloaded_bytes(
    model: ModelFacts, inputs: MemoryInputs, strategy: Strategy, world_size: int
) -> int:
    """Host memory of one process that offload takes, in bytes; 0 without offload.

    With ZeRO these are the optimizer states and the gradients that the optimizer reads, and unless
    the device holds it, the buffer in which micro-batches are summed; with ZeRO-3 the weights too.
    """
    if not inputs.offload or strategy == "DDP":
        return 0
    shards = _shard_states(model, inputs, strategy, world_size)
    if strategy == "FSDP":
        return shards.weights + shards.gradients + shards.optimizer
    held = shards.optimizer + offload_buffer_bytes(model, inputs, strategy, world_size)
    sums = gradient_sum_bytes(model, inputs, strategy, world_size)
    if strategy == "ZeRO3":
        return held + (sums or shards.gradients) + shards.weights
    return held if sums else held + -(-model_states(model, inputs).gradients // world_size)


def offload_buffer_bytes(
    model: ModelFacts, inputs: MemoryInputs, strategy: Strategy, world_size: int
) -> int:
    """What ZeRO allocates for its shard because of offload: the fp32 gradients that the optimizer
    reads, and below ZeRO-3 the updated weights on their way to the device. A weight has as many
    bytes as its gradient."""
    if not inputs.offload or strategy in ("DDP", "FSDP"):
        return 0
    gradients = -(-4 * trainable_parameters(model, inputs.method) // world_size)
    updated = -(-model_states(model, inputs).gradients // world_size)
    return gradients if strategy == "ZeRO3" else gradients + updated


def _resident_states(
    model: ModelFacts, inputs: MemoryInputs, strategy: Strategy, world_size: int
) -> ModelStates:
    """The states of one process that stay on its device."""
    shards = _shard_states(model, inputs, strategy, world_size)
    if inputs.device == "cpu" or not offloaded_bytes(model, inputs, strategy, world_size):
        return shards
    if strategy == "FSDP":
        return ModelStates(0, 0, 0)
    return ModelStates(0 if strategy == "ZeRO3" else shards.weights, shards.gradients, 0)


def _shard_states(
    model: ModelFacts, inputs: MemoryInputs, strategy: Strategy, world_size: int
) -> ModelStates:
    """The states of one of `world_size` processes."""
    states = model_states(model, inputs)
    shard_counts = {
        "DDP": (1, 1, 1),
        "ZeRO1": (1, 1, world_size),
        "ZeRO2": (1, world_size, world_size),
        "ZeRO3": (world_size, world_size, world_size),
        "FSDP": (world_size, world_size, world_size),
    }[strategy]
    parts = zip((states.weights, states.gradients, states.optimizer), shard_counts, strict=True)
    return ModelStates(*(-(-number // count) for number, count in parts))


def serving_bytes(model: ModelFacts, devices: int) -> int:
    """Memory on each of `devices` devices that serve a model in bf16 with tensor parallelism.

    The devices share the weights; the remaining memory must hold at least one sequence of 4,096
    tokens (or the model's context, where that is shorter) in the key-value cache, and vLLM itself.
    """
    cached = min(model.context_length, 4096)
    cache = 2 * 2 * model.layers * key_width(model) * cached
    return round((2 * model.parameters + cache) / devices * 1.1) + 2 * 1024**3
