"""How many parameters a method trains, computed from the sizes of the model alone.

Modules that do not have Llama's names count as large as the largest of a layer, and in
modulesToSave as the model, so that an unknown name never makes the estimate too small.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.facts import ModelFacts
from finetune_api.finetunejob import IA3, AdaLoRA, LoRA, Method, Prefix

FEEDFORWARD = ("gate_proj", "up_proj", "down_proj")
EMBEDDINGS = (
    "embed_tokens",
    "lm_head",
    "wte",
    "embed_in",
    "embed_out",
    "word_embeddings",
    "output_projection",
)
"""Usual names of the embedding and of the head."""
POSITIONS = ("wpe", "embed_positions")
"""Usual names of the embedding of positions."""
REWARD_HEAD = "score"
"""The head of a reward model, a single row."""
IA3_DEFAULT_TARGETS = ("k_proj", "v_proj", "down_proj")
"""What IA3 scales by default: keys, values and the feed-forward layer (Liu et al. 2022, arXiv
2205.05638, section 3.3)."""


@dataclass(frozen=True)
class Linear:
    """The sizes of a linear layer."""

    in_features: int
    out_features: int

    @property
    def weights(self) -> int:
        """Number of weights; biases are too few to count."""
        return self.in_features * self.out_features


def linear_layers(model: ModelFacts) -> dict[str, Linear]:
    """The linear layers of one block with a gated feed-forward layer, by Llama's names."""
    width, inner, narrow = model.hidden_size, model.intermediate_size, key_width(model)
    return {
        "q_proj": Linear(width, width),
        "k_proj": Linear(width, narrow),
        "v_proj": Linear(width, narrow),
        "o_proj": Linear(width, width),
        "gate_proj": Linear(width, inner),
        "up_proj": Linear(width, inner),
        "down_proj": Linear(inner, width),
    }


def key_width(model: ModelFacts) -> int:
    """Numbers in the keys of one token and one layer; the values have as many."""
    return model.hidden_size * model.key_value_heads // model.attention_heads


def quantized_parameters(model: ModelFacts) -> int:
    """Weights that QLoRA holds in four bits: the blocks' linear layers, no embedding, no head.

    bitsandbytes does not treat the experts of a mixture as linear layers and leaves them as they
    are. That is why this counts the layers instead of subtracting the rest from all parameters.
    """
    blocks = model.layers * sum(layer.weights for layer in linear_layers(model).values())
    return min(blocks, max(0, model.parameters - model.vocabulary * model.hidden_size))


def trainable_parameters(model: ModelFacts, method: Method) -> int:
    """Parameters that the optimizer changes."""
    match method.type:
        case "Full":
            return model.parameters
        case "IA3":
            return model.layers * _ia3_parameters(model, method.ia3 or IA3())
        case "Prefix":
            return _prefix_parameters(model, method.prefix or Prefix())
        case "AdaLoRA":
            settings = method.adalora or AdaLoRA()
            # One singular value in addition to a column and a row.
            return settings.initial_rank * _parameters_per_rank(model, settings.target_modules, 1)
        case "LoRA" | "QLoRA" | "DoRA":
            lora = method.lora or LoRA()
            count = lora.rank * _parameters_per_rank(model, lora.target_modules)
            if method.moe and method.moe.experts:
                more_experts = estimate_experts(model) - 1
                count += lora.rank * more_experts * _parameters_per_rank(model, FEEDFORWARD)
            count += saved_module_parameters(model, method)
            return count + (_dora_magnitudes(model, lora) if method.type == "DoRA" else 0)


def saved_module_parameters(model: ModelFacts, method: Method) -> int:
    """Weights of the modules of `method.lora.modulesToSave`; a tied one counts once."""
    names = {name.rsplit(".", 1)[-1] for name in (method.lora or LoRA()).modules_to_save}
    layers, embedding = linear_layers(model), model.vocabulary * model.hidden_size
    count = 0
    if tied := names & {*EMBEDDINGS} if model.has_tied_embeddings else set():
        names, count = names - tied, embedding
    # A block has two norms or more, up to twice as wide with their biases, and a last one follows.
    norms = {name for name in names if "norm" in name or name.startswith("ln")}
    count += len(norms) * (model.layers + 1) * 2 * model.hidden_size
    sizes = {name: model.layers * layer.weights for name, layer in layers.items()}
    sizes |= dict.fromkeys(EMBEDDINGS, embedding)
    sizes |= dict.fromkeys(POSITIONS, model.context_length * model.hidden_size)
    sizes[REWARD_HEAD] = 0
    return count + sum(sizes.get(name, model.parameters) for name in names - norms)


def estimate_experts(model: ModelFacts) -> int:
    """About how many feed-forward layers a block has: 1 unless it is a mixture of experts.

    The estimate counts embedding and output layer as attention weights, so it is one too high
    rather than one too low.
    """
    layers = linear_layers(model)
    feedforward = sum(layers[name].weights for name in FEEDFORWARD)
    attention = sum(layer.weights for layer in layers.values()) - feedforward
    return max(1, round((model.parameters // model.layers - attention) / feedforward))


def _adapted_layers(model: ModelFacts, modules: Iterable[str]) -> list[Linear]:
    layers, names = linear_layers(model), {name.rsplit(".", 1)[-1] for name in modules}
    if "all-linear" in names:
        return list(layers.values())
    largest = max(layers.values(), key=lambda layer: layer.in_features + layer.out_features)
    return [layers.get(name, largest) for name in sorted(names)]


def _parameters_per_rank(model: ModelFacts, modules: Iterable[str], extra: int = 0) -> int:
    """Parameters that one rank adds: inputs and outputs of every adapted layer of all blocks, and
    `extra` parameters for each layer."""
    adapted = _adapted_layers(model, modules)
    return model.layers * sum(each.in_features + each.out_features + extra for each in adapted)


def _dora_magnitudes(model: ModelFacts, lora: LoRA) -> int:
    """The norms of the weights' rows, which DoRA trains too."""
    adapted = _adapted_layers(model, lora.target_modules)
    return model.layers * sum(each.out_features for each in adapted)


def _ia3_parameters(model: ModelFacts, ia3: IA3) -> int:
    """A number for each input of a feed-forward module and each output of the others."""
    targets = set(ia3.target_modules or IA3_DEFAULT_TARGETS)
    feedforward = set(ia3.feedforward_modules if ia3.target_modules else IA3_DEFAULT_TARGETS[2:])
    outputs = sum(each.out_features for each in _adapted_layers(model, targets - feedforward))
    inputs = sum(each.in_features for each in _adapted_layers(model, targets & feedforward))
    return outputs + inputs


def _prefix_parameters(model: ModelFacts, prefix: Prefix) -> int:
    """Keys and values of the virtual tokens, or the network that computes them."""
    keys_values = 2 * model.layers * key_width(model)
    if not prefix.projection:
        return prefix.virtual_tokens * keys_values
    width = model.hidden_size
    return prefix.virtual_tokens * width + width * width + width * keys_values
