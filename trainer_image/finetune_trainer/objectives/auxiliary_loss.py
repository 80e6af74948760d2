"""What the method adds to any objective: the router's loss of a mixture of experts, and the
orthogonality of AdaLoRA's singular vectors.

Objectives know nothing of it. Routers are watched by hooks, so that it does not matter how often
and through which wrapper an objective calls the model.
"""

from typing import Any

import torch
from finetune_api.finetunejob import MixtureOfExperts

from finetune_trainer.methods.adalora import orthogonality_loss
from finetune_trainer.methods.moe import Routing, find_routers
from finetune_trainer.objectives.base import Losses, Objective, ObjectiveContext, RankBatch
from finetune_trainer.strategies import TrainingStrategy


def penalised(objective: Objective, model: Any, setting: ObjectiveContext) -> Objective:
    """The objective with what the method adds, or itself where that is nothing."""
    adaptive = setting.spec.method.type == "AdaLoRA"
    if not adaptive and not find_routers(model):
        return objective
    return Penalised(objective, model, setting)


class Penalised:
    """An objective whose losses have the method's penalty."""

    def __init__(self, objective: Objective, model: Any, setting: ObjectiveContext) -> None:
        self._objective = objective
        self._model = model if setting.spec.method.type == "AdaLoRA" else None
        moe = setting.spec.method.moe or MixtureOfExperts()
        watched = bool(find_routers(model))
        self._routing = Routing(model, moe.router_aux_loss_coefficient) if watched else None
        names = self._routing.names if self._routing else ()
        self.MEASURES: tuple[str, ...] = (*objective.MEASURES, *names)
        self._weight_of_token = 1.0

    def begin(self, engine: TrainingStrategy) -> None:
        """As the objective does."""
        self._objective.begin(engine)

    def share(self, step: int) -> RankBatch:
        """As the objective does."""
        share = self._objective.share(step)
        # The loop divides measures by the weight; those of a router are means over tokens.
        self._weight_of_token = share.weight / max(1, share.tokens)
        return share

    def held_out(self) -> RankBatch:
        """As the objective does."""
        return self._objective.held_out()

    def losses(self, model: Any, batch: Any) -> Losses:
        """The objective's, with the penalty while something is learnt."""
        if not torch.is_grad_enabled():
            return self._objective.losses(model, batch)
        if self._routing is None:
            losses = self._objective.losses(model, batch)
            return Losses(losses.each, _sum(losses.penalty, orthogonality_loss(self._model)))
        with self._routing.watched():
            losses = self._objective.losses(model, batch)
        penalty = _sum(losses.penalty, self._routing.penalty(batch.lengths > 0))
        if self._model is not None:
            penalty = _sum(penalty, orthogonality_loss(self._model))
        return Losses(losses.each, penalty)

    def measures(self) -> torch.Tensor:
        """The objective's, then those of the router."""
        measured = self._objective.measures()
        if self._routing is None:
            return measured
        routed = self._routing.measures() * self._weight_of_token
        return torch.cat([measured, routed.to(measured.device)])

    def remove(self) -> None:
        """Leave the model as it was."""
        self._objective.remove()
        if self._routing:
            self._routing.remove()


def _sum(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
