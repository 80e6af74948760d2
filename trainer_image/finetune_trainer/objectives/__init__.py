"""What is minimised: one class per objective, all with the interface of `base.Objective`."""

from typing import Any, assert_never

from finetune_trainer.objectives.auxiliary_loss import add_auxiliary_loss
from finetune_trainer.objectives.base import LossTerms, Objective, ObjectiveContext, RankBatch
from finetune_trainer.objectives.dpo import DPOObjective
from finetune_trainer.objectives.grpo import GRPOObjective
from finetune_trainer.objectives.kto import KTOObjective
from finetune_trainer.objectives.orpo import ORPOObjective
from finetune_trainer.objectives.reward import RewardObjective
from finetune_trainer.objectives.sft import SFTObjective
from finetune_trainer.objectives.simpo import SimPOObjective

__all__ = ["LossTerms", "Objective", "ObjectiveContext", "RankBatch", "make_objective"]


def make_objective(model: Any, context: ObjectiveContext) -> Objective:
    """The job's objective, with the auxiliary loss of its method.

    `model` is not wrapped by a strategy, or is the model inside the wrapper.
    """
    return add_auxiliary_loss(_make_plain_objective(model, context), model, context)


def _make_plain_objective(model: Any, context: ObjectiveContext) -> Objective:
    match context.spec.objective:
        case "SFT" | "Completion":
            return SFTObjective(model, context)
        case "DPO":
            return DPOObjective(model, context)
        case "KTO":
            return KTOObjective(model, context)
        case "ORPO":
            return ORPOObjective(model, context)
        case "SimPO":
            return SimPOObjective(model, context)
        case "Reward":
            return RewardObjective(model, context)
        case "GRPO":
            return GRPOObjective(model, context)
        case unknown:
            assert_never(unknown)
