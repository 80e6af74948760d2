"""Mixture-of-experts models: their expert weights, their router and how evenly it spreads tokens.

The load-balancing loss is that of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961,
section 2.2, equations 4 to 6): experts * sum_i f_i P_i, f the share of tokens sent to expert i and
P its mean routing probability. Only real tokens count: padding is routed too, always the same way.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import EXPERTS

TOP_K_NAMES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "num_selected_experts")
MAX_REPORTED_EXPERTS = 64
"""Experts up to which the load of each one is told."""


def expert_count(config: Any) -> int:
    """Routed experts of a layer; 0 for a dense model. `config` is of transformers or JSON."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = text if isinstance(text, dict) else vars(text)
    found = [known.get(name) or getattr(text, name, None) for name in EXPERTS]
    return next((int(value) for value in found if isinstance(value, int) and value > 1), 0)


def experts_per_token(config: Any) -> int:
    """Experts that a token is sent to; 1 where the config is silent. `config` is the text's."""
    found = [getattr(config, name, None) for name in TOP_K_NAMES]
    return next((int(each) for each in found if isinstance(each, int)), 1)


def is_moe(config: Any) -> bool:
    """Whether the model has experts."""
    return expert_count(config) > 0


def expert_weight_names(model: Any) -> list[str]:
    """Full names of the three-dimensional weights that hold all experts of a layer.

    Raises UserError ExpertsNotAdaptable where an architecture stores its experts otherwise.
    """
    names = [
        name
        for name, weight in model.named_parameters()
        if len(getattr(weight, "ds_shape", weight.shape)) == 3 and "expert" in name
    ]
    if not names:
        raise UserError(
            "ExpertsNotAdaptable",
            "The experts of this architecture are not stored as one weight for each layer.",
            "Set method.moe.experts to false, or method.type to Full.",
        )
    return names


def find_routers(model: Any) -> list[tuple[Any, int]]:
    """The routers that are trained with a load-balancing loss, and which output is their logits.

    Empty for a dense model, and for an architecture that balances otherwise, such as DeepSeek V3.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = inspect.signature(inner.forward).parameters
    if not is_moe(inner.config) or "output_router_logits" not in forward:
        return []
    known = (getattr(module, "_can_record_outputs", None) or {} for module in inner.modules())
    found = next((each["router_logits"] for each in known if "router_logits" in each), None)
    if found is None:
        return []
    return [
        (module, found.index)
        for name, module in inner.named_modules()
        if isinstance(module, found.target_class)
        and (not found.layer_name or found.layer_name in name)
    ]


class Routing:
    """The router's loss in every forward pass of training, and what it did over a step."""

    def __init__(self, model: Any, coefficient: float) -> None:
        """`model` has routers; see `routers`."""
        config = model.config.get_text_config()
        self._experts = expert_count(config)
        self._chosen = experts_per_token(config)
        self._coefficient = coefficient
        self.names: tuple[str, ...] = ("router_entropy", "expert_load_max")
        if self._experts <= MAX_REPORTED_EXPERTS:
            self.names += tuple(f"expert_load/{index}" for index in range(self._experts))
        self._seen = torch.zeros(len(self.names), dtype=torch.float64)
        self._logits: list[torch.Tensor] | None = None
        self._layers: list[torch.Tensor] = []
        self._hooks = [
            router.register_forward_hook(functools.partial(self._see, index))
            for router, index in find_routers(model)
        ]

    def _see(self, index: int, router: Any, inputs: Any, outputs: Any) -> None:
        # Not when activations are recomputed, for the first pass has told; nor in what is only
        # looked at, such as KTO's foreign answers.
        if self._logits is not None and torch.is_grad_enabled():
            self._logits.append(outputs[index] if isinstance(outputs, tuple) else outputs)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep what the routers say within; `penalty` uses it up."""
        self._logits = []
        try:
            yield
            self._layers = self._logits
        finally:
            self._logits = None

    def penalty(self, real: torch.Tensor) -> torch.Tensor | None:
        """The weighted load-balancing loss of what was watched, fp32 scalar; None when it is off.

        `real` tells the tokens that are not padding, bool [batch, length].
        """
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        layers = [logits.reshape(-1, self._experts) for logits in self._layers]
        self._layers = []
        if not layers or not bool(real.any()):
            return None
        self._measure(layers, real.reshape(-1).to(layers[0].device))
        if not self._coefficient:
            return None
        loss = load_balancing_loss_func(tuple(layers), self._experts, self._chosen, real)
        return self._coefficient * loss.float()

    def _measure(self, layers: Sequence[torch.Tensor], real: torch.Tensor) -> None:
        entropy = torch.zeros((), dtype=torch.float64, device=real.device)
        most, loads = entropy.clone(), entropy.new_zeros(self._experts)
        for logits in layers:
            probabilities = logits.detach()[real].float().softmax(-1)
            sent = probabilities.topk(self._chosen, -1).indices.reshape(-1)
            load = torch.bincount(sent, minlength=self._experts).double() / self._chosen
            entropy += torch.special.entr(probabilities).sum() / len(layers)
            most += load.max() / len(layers)
            loads += load / len(layers)
        told = loads if self._experts <= MAX_REPORTED_EXPERTS else loads[:0]
        self._seen = self._seen.to(real.device) + torch.cat([entropy[None], most[None], told])

    def measures(self) -> torch.Tensor:
        """Sums over this rank's tokens since the last call, float64 [names].

        Divided by the tokens of the global batch: mean entropy of the routing in nats; share of
        the busiest expert, in the mean over forward passes; and the share of each expert.
        """
        seen, self._seen = self._seen, torch.zeros_like(self._seen)
        return seen

    def remove(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()
