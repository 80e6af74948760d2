"""Auxiliary losses that a method adds to any objective: the load-balancing loss of the routers of a
mixture of experts, and the orthogonality of AdaLoRA's singular vectors.

Objectives do not depend on them. Router logits are recorded by hooks, so it does not matter how
often and through which wrapper an objective calls the model.
"""

from typing import Any

import torch
from finetune_api.finetunejob import MixtureOfExperts

from finetune_trainer.methods.adalora import orthogonality_loss
from finetune_trainer.methods.moe import Routing, find_routers
from finetune_trainer.objectives.base import LossTerms, Objective, ObjectiveContext, RankBatch
from finetune_trainer.strategies import TrainingStrategy


def add_auxiliary_loss(objective: Objective, model: Any, context: ObjectiveContext) -> Objective:
    """The objective with the auxiliary losses of the job's method; unchanged if it has none."""
    is_adalora = context.spec.method.type == "AdaLoRA"
    if not is_adalora and not find_routers(model):
        return objective
    return AuxiliaryLossObjective(objective, model, context)


class AuxiliaryLossObjective:
    """Wraps an objective and adds auxiliary losses and router metrics to its own."""

    def __init__(self, objective: Objective, model: Any, context: ObjectiveContext) -> None:
        self._objective = objective
        self._adalora_model = model if context.spec.method.type == "AdaLoRA" else None
        moe = context.spec.method.moe or MixtureOfExperts()
        has_routers = bool(find_routers(model))
        self._routing = Routing(model, moe.router_aux_loss_coefficient) if has_routers else None
        names = self._routing.metric_names if self._routing else ()
        self.METRICS: tuple[str, ...] = (*objective.METRICS, *names)
        self._items_per_token = 1.0

    def inspect_untrained_model(self, strategy: TrainingStrategy) -> None:
        self._objective.inspect_untrained_model(strategy)

    def make_rank_batch(self, step: int) -> RankBatch:
        batch = self._objective.make_rank_batch(step)
        # The loop divides metrics by the number of items; those of a router are means over tokens.
        self._items_per_token = batch.num_items_in_batch / max(1, batch.tokens)
        return batch

    def make_held_out_batch(self) -> RankBatch:
        return self._objective.make_held_out_batch()

    def compute_losses(self, model: Any, micro_batch: Any) -> LossTerms:
        """The objective's losses; in training, that is with gradients, also the auxiliary ones."""
        if not torch.is_grad_enabled():
            return self._objective.compute_losses(model, micro_batch)
        if self._routing is None:
            losses = self._objective.compute_losses(model, micro_batch)
            auxiliary = _add(losses.auxiliary, orthogonality_loss(self._adalora_model))
            return LossTerms(losses.per_item, auxiliary)
        with self._routing.record_logits():
            losses = self._objective.compute_losses(model, micro_batch)
        is_token = micro_batch.sample_lengths > 0
        auxiliary = _add(losses.auxiliary, self._routing.auxiliary_loss(is_token))
        if self._adalora_model is not None:
            auxiliary = _add(auxiliary, orthogonality_loss(self._adalora_model))
        return LossTerms(losses.per_item, auxiliary)

    def take_metrics(self) -> torch.Tensor:
        """The metrics of the objective, then those of the routers."""
        metrics = self._objective.take_metrics()
        if self._routing is None:
            return metrics
        of_routers = self._routing.take_metrics() * self._items_per_token
        return torch.cat([metrics, of_routers.to(metrics.device)])

    def detach_from_model(self) -> None:
        self._objective.detach_from_model()
        if self._routing:
            self._routing.remove_hooks()


def _add(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
