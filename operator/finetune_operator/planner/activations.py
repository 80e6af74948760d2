"""What a forward pass leaves behind for the backward pass, in bytes.

After Korthikanti et al. 2022 (arXiv 2205.05198, sections 4.1 and 5), for blocks with grouped-query
attention, a gated feed-forward layer and attention that never stores its scores. The trainer makes
logits for a few positions at a time, and the numbers below that say how many are the trainer's own.
"""

from finetune_api.finetunejob import AdaLoRA, LoRA, Prefix
from finetune_api.run import ModelFacts

from finetune_operator.planner.memory_inputs import MemoryInputs
from finetune_operator.planner.parameters import key_width, linear_layers

LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}
"""Most logits that are there at the same time."""
KEPT_LOGITS = 2**27
"""Most logits whose gradient a trained output head keeps until the backward pass."""
WIDENED = 4096
"""Positions whose logits are fp32 at a time, where logits are needed whole."""
CACHE = {"cpu": 256 * 1024**2, "cuda": 2 * 1024**3}
"""Keys and values of the answers that GRPO samples at once, in bytes."""
SCALED_LOGITS = ("Cohere", "Gemma2", "Gemma3", "Gemma4", "Granite")
"""Architectures that change the logits after the output head, so that they are needed whole."""


def activation_bytes(model: ModelFacts, load: MemoryInputs, micro_batch: int) -> int:
    """Activations and logits of one micro-batch of so many units.

    With full recomputation every block keeps its input only, and one block at a time is whole;
    with selective recomputation every block keeps the results of matrix products and attention.
    """
    rows, size = micro_batch * load.rows, load.number_bytes
    tokens = rows * load.sequence
    block = block_bytes(model, load, tokens)
    inputs = tokens * size * model.hidden_size
    kept = {
        "None": model.layers * block,
        "Selective": model.layers * (inputs + products_bytes(model, load, tokens)) + block,
        "Full": model.layers * inputs + block,
    }[load.recomputation]
    mask = rows * load.sequence**2 * size
    learning = kept + mask + passing_bytes(model, load) + logit_bytes(model, load, tokens)
    return max(learning, sampling_bytes(model, load))


def block_bytes(model: ModelFacts, load: MemoryInputs, tokens: int) -> int:
    """One whole block.

    It stores, per token, 8.5 numbers per unit of width (attention 5.5, norms 2, input of the
    feed-forward layer 1) and 4 per unit of the gated layer.
    """
    width, inner, size = model.hidden_size, model.intermediate_size, load.number_bytes
    block = tokens * size * (17 * width // 2 + 4 * inner)
    if load.method.type == "DoRA":
        # The results before they are scaled.
        block += tokens * size * sum(each.outputs for each in linear_layers(model).values())
    if load.method.type == "IA3":
        block += tokens * size * (2 * key_width(model) + inner)
    if load.method.type == "Prefix":
        prefix = (load.method.prefix or Prefix()).virtual_tokens
        block += tokens // load.sequence * prefix * size * 2 * key_width(model)
    if dropout(load) > 0:
        # Dropout before the adapters keeps a copy of each linear layer's input.
        block += tokens * size * (6 * width + inner)
    return block


def passing_bytes(model: ModelFacts, load: MemoryInputs) -> int:
    """What is there in one layer at a time: weights brought back from four bits, or DoRA's sum of
    weight and update, whose rows are measured."""
    largest = max(layer.weights for layer in linear_layers(model).values())
    size = {"QLoRA": load.number_bytes, "DoRA": 8}.get(load.method.type, 0)
    return size * largest


def products_bytes(model: ModelFacts, load: MemoryInputs, tokens: int) -> int:
    """Results of the matrix products and of attention in one block."""
    outputs = sum(layer.outputs for layer in linear_layers(model).values())
    return tokens * load.number_bytes * (outputs + model.hidden_size)


def logit_bytes(model: ModelFacts, load: MemoryInputs, tokens: int) -> int:
    """Logits as computed, widened to fp32, and their gradient; a reward model has none.

    Policies and models that scale their logits hold those of every learnt position; otherwise they
    exist for a few positions at a time.
    """
    if load.objective == "Reward":
        return 0
    size = load.number_bytes
    if load.objective == "GRPO" or model.architecture.startswith(SCALED_LOGITS):
        learnt = tokens * load.answer // load.sequence if load.answer else tokens
        return model.vocabulary * (2 * size * learnt + 8 * min(learnt, WIDENED))
    logits = tokens * model.vocabulary
    kept = min(logits, KEPT_LOGITS) * size if load.method.type == "Full" else 0
    return min(logits, LOGITS_AT_ONCE[load.device]) * (size + 4 + 4) + kept


def sampling_bytes(model: ModelFacts, load: MemoryInputs) -> int:
    """Keys and values while GRPO writes its answers, when nothing else is kept."""
    if load.objective != "GRPO":
        return 0
    one = 2 * model.layers * key_width(model) * load.number_bytes * load.sequence
    return max(one, CACHE[load.device])


def dropout(load: MemoryInputs) -> float:
    """Dropout of the adapters; 0 where there are none."""
    method = load.method
    if method.type in ("LoRA", "QLoRA", "DoRA"):
        return (method.lora or LoRA()).dropout
    return (method.adalora or AdaLoRA()).dropout if method.type == "AdaLoRA" else 0.0
