"""Mixture-of-experts models: expert weights, routers, and how evenly routers distribute tokens.

The load-balancing loss is that of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961,
section 2.2, equations 4 to 6): experts * sum_i f_i P_i, where f_i is the fraction of tokens sent to
expert i and P_i its mean routing probability. Padding does not count: it is routed too, always to
the same experts.
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
"""Names of the number of experts per token in configs of transformers."""
MAX_REPORTED_EXPERTS = 64
"""Models with more experts report no load per expert."""


def expert_count(config: Any) -> int:
    """Routed experts of a layer; 0 for a dense model. `config`: of transformers, or its JSON."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    values = text if isinstance(text, dict) else vars(text)
    counts = [values.get(name) or getattr(text, name, None) for name in EXPERTS]
    return next((int(count) for count in counts if isinstance(count, int) and count > 1), 0)


def experts_per_token(config: Any) -> int:
    """Experts that a token is sent to; 1 where the text config does not say."""
    counts = [getattr(config, name, None) for name in TOP_K_NAMES]
    return next((int(count) for count in counts if isinstance(count, int)), 1)


def is_moe(config: Any) -> bool:
    return expert_count(config) > 0


def expert_weight_names(model: Any) -> list[str]:
    """Full names of the weights that hold all experts of a layer, [experts, ..., ...].

    Raises UserError ExpertsNotAdaptable where an architecture stores its experts differently.
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
    """Routers that are trained with a load-balancing loss, each with the index of its logits among
    its outputs.

    Empty for a dense model, and for an architecture that balances its experts in another way, such
    as DeepSeek V3.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(inner.forward).parameters
    if not is_moe(inner.config) or "output_router_logits" not in parameters:
        return []
    recorded = (getattr(module, "_can_record_outputs", None) or {} for module in inner.modules())
    recorder = next((each["router_logits"] for each in recorded if "router_logits" in each), None)
    if recorder is None:
        return []
    return [
        (module, recorder.index)
        for name, module in inner.named_modules()
        if isinstance(module, recorder.target_class)
        and (not recorder.layer_name or recorder.layer_name in name)
    ]


class Routing:
    """Hooks on the routers: the auxiliary loss of a forward pass, and metrics of a step."""

    def __init__(self, model: Any, coefficient: float) -> None:
        """`model`: one for which `find_routers` returns routers; `coefficient`: weight of the
        load-balancing loss."""
        config = model.config.get_text_config()
        self._experts = expert_count(config)
        self._experts_per_token = experts_per_token(config)
        self._coefficient = coefficient
        self.metric_names: tuple[str, ...] = ("router_entropy", "expert_load_max")
        if self._experts <= MAX_REPORTED_EXPERTS:
            self.metric_names += tuple(f"expert_load/{index}" for index in range(self._experts))
        self._metric_sums = torch.zeros(len(self.metric_names), dtype=torch.float64)
        self._recording: list[torch.Tensor] | None = None
        self._layer_logits: list[torch.Tensor] = []
        self._hooks = [
            router.register_forward_hook(functools.partial(self._record, index))
            for router, index in find_routers(model)
        ]

    def _record(self, index: int, router: Any, inputs: Any, outputs: Any) -> None:
        # Neither while activations are recomputed, whose logits the first pass has recorded, nor
        # in a forward pass without gradients, such as over KTO's mismatched answers.
        if self._recording is not None and torch.is_grad_enabled():
            self._recording.append(outputs[index] if isinstance(outputs, tuple) else outputs)

    @contextlib.contextmanager
    def record_logits(self) -> Iterator[None]:
        """Keep the routers' logits of the forward pass inside; `auxiliary_loss` consumes them."""
        self._recording = []
        try:
            yield
            self._layer_logits = self._recording
        finally:
            self._recording = None

    def auxiliary_loss(self, is_token: torch.Tensor) -> torch.Tensor | None:
        """The weighted load-balancing loss of the recorded logits, an fp32 scalar.

        `is_token`: bool [batch, length], False for padding. None where the coefficient is 0 or
        nothing was recorded.
        """
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        # Each [batch * length, experts].
        layers = [logits.reshape(-1, self._experts) for logits in self._layer_logits]
        self._layer_logits = []
        if not layers or not bool(is_token.any()):
            return None
        self._add_metrics(layers, is_token.reshape(-1).to(layers[0].device))
        if not self._coefficient:
            return None
        loss = load_balancing_loss_func(
            tuple(layers), self._experts, self._experts_per_token, is_token
        )
        return self._coefficient * loss.float()

    def _add_metrics(self, layers: Sequence[torch.Tensor], is_token: torch.Tensor) -> None:
        entropy = torch.zeros((), dtype=torch.float64, device=is_token.device)
        max_load, loads = entropy.clone(), entropy.new_zeros(self._experts)
        for logits in layers:
            probabilities = logits.detach()[is_token].float().softmax(-1)  # [tokens, experts]
            chosen = probabilities.topk(self._experts_per_token, -1).indices.reshape(-1)
            load = torch.bincount(chosen, minlength=self._experts).double()  # [experts]
            load = load / self._experts_per_token
            entropy += torch.special.entr(probabilities).sum() / len(layers)
            max_load += load.max() / len(layers)
            loads += load / len(layers)
        reported = loads if self._experts <= MAX_REPORTED_EXPERTS else loads[:0]
        sums = torch.cat([entropy[None], max_load[None], reported])
        self._metric_sums = self._metric_sums.to(is_token.device) + sums

    def take_metrics(self) -> torch.Tensor:
        """Sums over this rank's tokens since the last call, float64 [metric_names].

        Divided by the tokens of the global batch they are the mean entropy of the routing in nats,
        the fraction of tokens of the busiest expert (mean over forward passes), and the fraction of
        each expert.
        """
        sums, self._metric_sums = self._metric_sums, torch.zeros_like(self._metric_sums)
        return sums

    def remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
