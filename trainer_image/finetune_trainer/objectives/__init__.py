"""What is minimised: one class for each objective, with the same few verbs."""

from typing import Any

from finetune_trainer.objectives.auxiliary_loss import penalised
from finetune_trainer.objectives.base import Losses, Objective, ObjectiveContext, RankBatch
from finetune_trainer.objectives.dpo import DPOObjective
from finetune_trainer.objectives.grpo import GRPOObjective
from finetune_trainer.objectives.kto import KTOObjective
from finetune_trainer.objectives.orpo import ORPOObjective
from finetune_trainer.objectives.reward import RewardObjective
from finetune_trainer.objectives.sft import SFTObjective

__all__ = ["Losses", "Objective", "ObjectiveContext", "RankBatch", "make_objective"]


def make_objective(model: Any, setting: ObjectiveContext) -> Objective:
    """The job's objective on a model that is not wrapped yet, or on the one inside the wrapper."""
    return penalised(_objective(model, setting), model, setting)


def _objective(model: Any, setting: ObjectiveContext) -> Objective:
    match setting.spec.objective:
        case "DPO":
            return DPOObjective(model, setting)
        case "KTO":
            return KTOObjective(model, setting)
        case "ORPO":
            return ORPOObjective(model, setting)
        case "Reward":
            return RewardObjective(model, setting)
        case "GRPO":
            return GRPOObjective(model, setting)
        case _:
            return SFTObjective(model, setting)
