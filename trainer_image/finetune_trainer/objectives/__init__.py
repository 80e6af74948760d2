"""What is minimised: one class for each objective, with the same few verbs."""

from typing import Any

from finetune_trainer.objectives.base import Losses, Objective, Setting, Share
from finetune_trainer.objectives.language import LanguageModelling

__all__ = ["Losses", "Objective", "Setting", "Share", "make_objective"]


def make_objective(model: Any, setting: Setting) -> Objective:
    """The job's objective on a model that is not wrapped yet, or on the one inside the wrapper."""
    return LanguageModelling(model, setting)
