"""How many parameters a method trains, from the sizes of the model alone.

Modules that are not called as Llama's are counted as large as the largest of a layer, so that an
unknown name never makes the estimate too small.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.finetunejob import IA3, AdaLoRA, LoRA, Method, Prefix
from finetune_api.run import ModelFacts

FEEDFORWARD = ("gate_proj", "up_proj", "down_proj")
KEYS_VALUES_FEEDFORWARD = ("k_proj", "v_proj", "down_proj")
"""What IA3 scales when the job names nothing (Liu et al. 2022, arXiv 2205.05638, section 3.3)."""


@dataclass(frozen=True)
class Linear:
    """A linear layer."""

    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Its weights; biases are too few to count."""
        return self.inputs * self.outputs


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

    Experts of a mixture are not linear layers to bitsandbytes and stay as they are, which is why
    the layers are counted and not the parameters that are left.
    """
    blocks = model.layers * sum(layer.weights for layer in linear_layers(model).values())
    return min(blocks, max(0, model.parameters - model.vocabulary * model.hidden_size))


def trained_parameters(model: ModelFacts, method: Method) -> int:
    """Parameters that the optimizer changes."""
    match method.type:
        case "Full":
            return model.parameters
        case "IA3":
            return model.layers * _scales(model, method.ia3 or IA3())
        case "Prefix":
            return _prefix(model, method.prefix or Prefix())
        case "AdaLoRA":
            settings = method.adalora or AdaLoRA()
            return settings.initial_rank * _ends(model, settings.target_modules, 1)
        case _:
            lora = method.lora or LoRA()
            trained = lora.rank * _ends(model, lora.target_modules)
            if method.moe and method.moe.experts:
                trained += lora.rank * (experts(model) - 1) * _feedforward_ends(model)
            return trained + (_lengths(model, lora) if method.type == "DoRA" else 0)


def experts(model: ModelFacts) -> int:
    """About how many feed-forward layers a block has: 1 unless it is a mixture of experts.

    Embedding and output layer are taken for attention's, so that it is rather one too many.
    """
    layers = linear_layers(model)
    one = sum(layers[name].weights for name in FEEDFORWARD)
    attention = sum(layer.weights for layer in layers.values()) - one
    return max(1, round((model.parameters // model.layers - attention) / one))


def _feedforward_ends(model: ModelFacts) -> int:
    layers = linear_layers(model)
    return model.layers * sum(layers[name].inputs + layers[name].outputs for name in FEEDFORWARD)


def _adapted(model: ModelFacts, modules: Iterable[str]) -> list[Linear]:
    layers, names = linear_layers(model), {name.rsplit(".", 1)[-1] for name in modules}
    if "all-linear" in names:
        return list(layers.values())
    largest = max(layers.values(), key=lambda layer: layer.inputs + layer.outputs)
    return [layers.get(name, largest) for name in sorted(names)]


def _ends(model: ModelFacts, modules: Iterable[str], more: int = 0) -> int:
    """Inputs and outputs of every adapted layer of all blocks: what one rank costs."""
    adapted = _adapted(model, modules)
    return model.layers * sum(each.inputs + each.outputs + more for each in adapted)


def _lengths(model: ModelFacts, lora: LoRA) -> int:
    """The lengths of the weights' rows, which DoRA learns too."""
    return model.layers * sum(each.outputs for each in _adapted(model, lora.target_modules))


def _scales(model: ModelFacts, ia3: IA3) -> int:
    """A number for each input of a feed-forward module and each output of the others."""
    targets = set(ia3.target_modules or KEYS_VALUES_FEEDFORWARD)
    feedforward = set(
        ia3.feedforward_modules if ia3.target_modules else KEYS_VALUES_FEEDFORWARD[2:]
    )
    outputs = sum(each.outputs for each in _adapted(model, targets - feedforward))
    return outputs + sum(each.inputs for each in _adapted(model, targets & feedforward))


def _prefix(model: ModelFacts, prefix: Prefix) -> int:
    """Keys and values of the virtual tokens, or the network that makes them."""
    made = 2 * model.layers * key_width(model)
    if not prefix.projection:
        return prefix.virtual_tokens * made
    width = model.hidden_size
    return prefix.virtual_tokens * width + width * width + width * made
