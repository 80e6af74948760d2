"""What is minimised: one class for each objective, with the same few verbs."""

from typing import Any

from finetune_trainer.objectives.base import Losses, Objective, Setting, Share
from finetune_trainer.objectives.dpo import DirectPreference
from finetune_trainer.objectives.grpo import GroupRelativePolicy
from finetune_trainer.objectives.kto import KahnemanTversky
from finetune_trainer.objectives.language import LanguageModelling
from finetune_trainer.objectives.orpo import OddsRatio
from finetune_trainer.objectives.penalised import penalised
from finetune_trainer.objectives.reward import RewardModel

__all__ = ["Losses", "Objective", "Setting", "Share", "make_objective"]


def make_objective(model: Any, setting: Setting) -> Objective:
    """The job's objective on a model that is not wrapped yet, or on the one inside the wrapper."""
    return penalised(_objective(model, setting), model, setting)


def _objective(model: Any, setting: Setting) -> Objective:
    match setting.spec.objective:
        case "DPO":
            return DirectPreference(model, setting)
        case "KTO":
            return KahnemanTversky(model, setting)
        case "ORPO":
            return OddsRatio(model, setting)
        case "Reward":
            return RewardModel(model, setting)
        case "GRPO":
            return GroupRelativePolicy(model, setting)
        case _:
            return LanguageModelling(model, setting)
