"""What a forward pass keeps for the backward pass, in bytes.

After Korthikanti et al. 2022 (arXiv 2205.05198, sections 4.1 and 5), for blocks with grouped-query
attention, a gated feed-forward layer and attention that never stores its scores, except in
EAGER_ARCHITECTURES. The trainer computes the logits in chunks; the constants below are the
trainer's own chunk sizes.
"""

from finetune_api.facts import ModelFacts
from finetune_api.finetunejob import AdaLoRA, LoRA, Method, Prefix

from finetune_operator.planner.memory_inputs import MemoryInputs
from finetune_operator.planner.parameters import (
    key_width,
    linear_layers,
    saved_module_parameters,
)

LOGITS_PER_CHUNK = {"cpu": 2**23, "cuda": 2**27}
"""Most logits that exist at the same time."""
MAX_KEPT_LOGITS = 2**27
"""Most logits whose gradient a trained output head keeps until the backward pass."""
FP32_POSITIONS = 4096
"""Positions whose logits are fp32 at the same time, in models that need all logits at once."""
SAVED_MODULE_BYTES = 8
"""Of a weight of modulesToSave while its gradient is computed, in fp32 and in half precision."""
KV_CACHE_BYTES = {"cpu": 256 * 1024**2, "cuda": 2 * 1024**3}
"""Keys and values of the completions that GRPO samples together."""
SCALED_LOGIT_ARCHITECTURES = (
    "Cohere",
    "FalconH1",
    "Gemma2",
    "Gemma3",
    "Gemma4",
    "Granite",
    "HyperCLOVAX",
    "NanoChat",
    "VaultGemma",
)
"""Architectures that change the logits after the output head, which then must compute them all."""

EAGER_ARCHITECTURES = (
    "BigBird",
    "Bloom",
    "CodeGen",
    "CpmAnt",
    "DeepseekV4",
    "GPTJ",
    "GPTNeoFor",
    "GPTNeoXJapanese",
    "Gemma2",
    "Git",
    "GotOcr2",
    "GptOss",
    "GraniteMoeSWA",
    "GraniteSWA",
    "HYV4",
    "MegatronBert",
    "MiMoV2Flash",
    "Mpt",
    "Mvp",
    "OpenAIGPT",
    "ProphetNet",
    "RemBert",
    "RoFormer",
    "TrOCR",
    "VaultGemma",
    "XGLM",
    "XLMWith",
    "XLNet",
)
"""Architectures without a fused kernel for attention, and those that cap its scores; transformers
computes and stores a score for each pair of positions."""
SCORE_BYTES = 8
"""Kept of a score: the fp32 softmax, and of a capped one the tanh. In 16 bits the tanh takes half
as much, and a copy of the softmax, which is multiplied by the values, the other half."""


def activation_bytes(model: ModelFacts, inputs: MemoryInputs, micro_batch: int) -> int:
    """Activations and logits of one micro-batch of `micro_batch` samples.

    With full recomputation every block keeps its input only, and one block at a time has all its
    activations; with selective recomputation every block keeps the outputs of matrix products and
    of attention.
    """
    sequences, size = micro_batch * inputs.sequences_per_sample, inputs.dtype_bytes
    tokens = sequences * inputs.sequence_length
    block = block_bytes(model, inputs, tokens)
    block_input = tokens * size * model.hidden_size
    kept = {
        "None": model.layers * block,
        "Selective": model.layers * (block_input + matmul_output_bytes(model, inputs, tokens))
        + block,
        "Full": model.layers * block_input + block,
    }[inputs.recomputation]
    mask = sequences * inputs.sequence_length**2 * size
    transient = transient_bytes(model, inputs) + score_gradient_bytes(model, inputs, tokens)
    training = kept + mask + transient + logit_bytes(model, inputs, tokens)
    return max(training, sampling_bytes(model, inputs))


def block_bytes(model: ModelFacts, inputs: MemoryInputs, tokens: int) -> int:
    """All activations of one block.

    A block stores, per token, 8.5 numbers per unit of width (attention 5.5, norms 2, input of the
    feed-forward layer 1) and 4 per unit of the gated layer. Eager attention stores SCORE_BYTES per
    score.
    """
    width, inner, size = model.hidden_size, model.intermediate_size, inputs.dtype_bytes
    block = tokens * size * (17 * width // 2 + 4 * inner)
    block += count_stored_scores(model, inputs, tokens) * SCORE_BYTES
    if inputs.method.type == "DoRA":
        # The outputs before DoRA scales them.
        block += tokens * size * sum(each.out_features for each in linear_layers(model).values())
    if inputs.method.type == "IA3":
        block += tokens * size * (2 * key_width(model) + inner)
    if inputs.method.type == "Prefix":
        prefix = (inputs.method.prefix or Prefix()).virtual_tokens
        block += tokens // inputs.sequence_length * prefix * size * 2 * key_width(model)
    if adapter_dropout(inputs.method) > 0:
        # Dropout before the adapters keeps a copy of each linear layer's input.
        block += tokens * size * (6 * width + inner)
    return block


def count_stored_scores(model: ModelFacts, inputs: MemoryInputs, tokens: int) -> int:
    """Attention scores of one layer, for every head and pair of positions, windows or not; 0 where
    a fused kernel never stores them."""
    if not model.architecture.startswith(EAGER_ARCHITECTURES):
        return 0
    return model.attention_heads * tokens * inputs.sequence_length


def score_gradient_bytes(model: ModelFacts, inputs: MemoryInputs, tokens: int) -> int:
    """Gradients of one layer's scores: fp32 after and before the softmax, and where attention sinks
    are cut off after the softmax, the gradient from which they are missing."""
    return count_stored_scores(model, inputs, tokens) * (4 + 4 + inputs.dtype_bytes)


def transient_bytes(model: ModelFacts, inputs: MemoryInputs) -> int:
    """Tensors that exist for one layer at a time: QLoRA's dequantized weights, or DoRA's sum of
    weight and update, of which it takes the norm of each row. A head of modulesToSave rounds its
    weight; at most its gradient is added up in fp32, next to a product in that precision, and
    rounded."""
    largest = max(layer.weights for layer in linear_layers(model).values())
    size = {"QLoRA": inputs.dtype_bytes, "DoRA": 8}.get(inputs.method.type, 0)
    heads = SAVED_MODULE_BYTES * saved_module_parameters(model, inputs.method)
    return size * largest + heads


def matmul_output_bytes(model: ModelFacts, inputs: MemoryInputs, tokens: int) -> int:
    """Outputs of the matrix products and of attention in one block."""
    outputs = sum(layer.out_features for layer in linear_layers(model).values())
    scores = count_stored_scores(model, inputs, tokens)
    return inputs.dtype_bytes * (tokens * (outputs + model.hidden_size) + scores)


def logit_bytes(model: ModelFacts, inputs: MemoryInputs, tokens: int) -> int:
    """Logits as computed, as fp32, and their gradient; a reward model has none.

    GRPO and models that scale their logits hold the logits of every trained position; all others
    hold one chunk at a time.
    """
    if inputs.objective == "Reward":
        return 0
    size, completion = inputs.dtype_bytes, inputs.completion_length
    if inputs.objective == "GRPO" or model.architecture.startswith(SCALED_LOGIT_ARCHITECTURES):
        positions = tokens * completion // inputs.sequence_length if completion else tokens
        return model.vocabulary * (2 * size * positions + 8 * min(positions, FP32_POSITIONS))
    logits = tokens * model.vocabulary
    trains_head = inputs.method.type == "Full" or saved_module_parameters(model, inputs.method) > 0
    kept = min(logits, MAX_KEPT_LOGITS) * size if trains_head else 0
    return min(logits, LOGITS_PER_CHUNK[inputs.device]) * (size + 4 + 4) + kept


def sampling_bytes(model: ModelFacts, inputs: MemoryInputs) -> int:
    """Keys and values while GRPO samples completions; training tensors do not exist then."""
    if inputs.objective != "GRPO":
        return 0
    per_token = 2 * model.layers * key_width(model) * inputs.dtype_bytes
    return max(per_token * inputs.sequence_length, KV_CACHE_BYTES[inputs.device])


def adapter_dropout(method: Method) -> float:
    """Dropout of the adapters; 0 for methods without adapter dropout."""
    if method.type in ("LoRA", "QLoRA", "DoRA"):
        return (method.lora or LoRA()).dropout
    return (method.adalora or AdaLoRA()).dropout if method.type == "AdaLoRA" else 0.0
