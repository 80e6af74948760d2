"""What a job learns to do, and the settings of each objective.

A section of settings belongs to its objective; finetune_api.combinations refuses it beside others.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import SpecModel, cel, validations
from finetune_api.model import ModelAddress

Objective = Literal["SFT", "Completion", "DPO", "KTO", "ORPO", "Reward", "GRPO"]


class SFT(SpecModel):
    """Supervised fine-tuning."""

    loss_on: Literal["Assistant", "All"] = "Assistant"
    """Assistant learns what the assistant says; All learns the prompts too."""


class DPO(SpecModel):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

    loss: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero",
        "apo_down",
    ] = "sigmoid"  # fmt: skip
    """Loss of a pair, by the names that TRL gives them."""
    beta: float = Field(default=0.1, gt=0, le=100)
    """Strength of the tie to the reference model."""
    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """Share of pairs that are thought to be labelled the wrong way round, below one half; sigmoid,
    robust and exo_pair use it."""


class KTO(SpecModel):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Strength of the tie to the reference model."""
    desirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of desirable answers."""
    undesirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of undesirable answers."""


class ORPO(SpecModel):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Weight of the odds-ratio term beside the likelihood of the chosen answer."""


class Reward(SpecModel):
    """A reward model by the Bradley-Terry loss (Ouyang et al. 2022, arXiv 2203.02155)."""

    centering: float = Field(default=0.0, ge=0, le=10)
    """Weight of the squared sum of both rewards, which keeps them around zero (Eisenstein et al.
    2023, arXiv 2312.09244)."""


class RewardFunction(SpecModel):
    """A reward that is computed and not learnt."""

    model_config = validations(
        cel(
            "(self.type == 'regex') == has(self.pattern)",
            "type regex needs a pattern, and no other type has one",
            ".pattern",
        )
    )

    type: Literal["exactMatch", "contains", "numeric", "rougeL", "regex", "json", "length"]
    """exactMatch, contains, numeric (the last number) and rougeL compare with the reference;
    regex: the answer matches the pattern; json: it is valid JSON; length: 1 for an answer that
    ended by itself, 0 for one that was cut. Each gives 0 to 1."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Of regex, in the syntax of Python's regex library; searched in the answer. A search that
    takes a quarter of a second counts as none."""
    weight: float = Field(default=1.0, ge=-100, le=100)
    """The rewards are summed with these weights."""


class GRPO(SpecModel):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    model_config = validations(
        cel(
            "size(self.rewards) > 0 || has(self.rewardModel)",
            "give rewards, rewardModel or both",
            ".rewards",
        )
    )

    rewards: list[RewardFunction] = Field(default_factory=list, max_length=8)
    """Computed rewards."""
    reward_model: ModelAddress | None = None
    """A sequence classifier with one output, such as the artifact of a Reward job; its score of
    the conversation is added with weight 1."""
    generations: int = Field(default=8, ge=2, le=128)
    """Answers to each prompt; they are compared with each other."""
    max_new_tokens: int = Field(default=256, ge=1, le=16384)
    """Longest answer in tokens."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Of sampling."""
    beta: float = Field(default=0.0, ge=0, le=10)
    """Weight of the divergence from the base model, which is the model without its adapters (the
    unbiased low-variance estimate of the paper's equation 4); 0 leaves it out."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Clipping range of the ratio of probabilities."""
    updates: int = Field(default=1, ge=1, le=16)
    """Optimizer steps on the same answers; an epoch has that many times more steps."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How the losses of tokens are averaged, by the names that TRL gives them."""
    scale_rewards: bool = True
    """Divide advantages by the standard deviation of their group; dr_grpo's authors advise
    against it (Liu et al. 2025, arXiv 2503.20783)."""
