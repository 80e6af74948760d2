"""The objectives that a job can train for, and the settings of each.

A section of settings belongs to its objective; finetune_api.combinations refuses it with others.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import SpecModel, cel, validation_config
from finetune_api.model import ModelAddress

Objective = Literal["SFT", "Completion", "DPO", "KTO", "ORPO", "SimPO", "Reward", "GRPO"]
DROPOUT_OBJECTIVES: tuple[Objective, ...] = ("SFT", "Completion")
"""Objectives that train with dropout. The others compare probabilities, which random masks would
change: with a reference, between two completions, or with those at the time of sampling."""
REFERENCE_REWARDS = ("exactMatch", "contains", "numeric", "rougeL")
"""Types of RewardFunction that compare an answer with a reference, so every prompt needs one."""


class SFT(SpecModel):
    """Supervised fine-tuning."""

    loss_on: Literal["Assistant", "All"] = "Assistant"
    """Tokens that the loss is computed on: Assistant takes the assistant's turns, All the prompts
    too."""


class DPO(SpecModel):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

    loss: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero",
        "apo_down",
    ] = "sigmoid"  # fmt: skip
    """Loss of a pair, by TRL's names."""
    beta: float = Field(default=0.1, gt=0, le=100)
    """Penalty for diverging from the reference model; a higher value stays closer to it."""
    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """Assumed fraction of pairs whose labels are swapped, below one half; sigmoid, robust and
    exo_pair use it."""
    nll_weight: float = Field(default=0.0, ge=0, le=100)
    """Weight of the negative log-likelihood per token of the chosen answer, which is added to the
    loss so that this answer does not become less likely (Pang et al. 2024, arXiv 2404.19733,
    equation 1); TRL calls it rpo_alpha."""


class KTO(SpecModel):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Penalty for diverging from the reference model; a higher value stays closer to it."""
    desirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of desirable answers."""
    undesirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of undesirable answers."""


class ORPO(SpecModel):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Weight of the odds-ratio term, which is added to the loss of the chosen answer."""


class SimPO(SpecModel):
    """Simple preference optimisation with a target margin (Meng et al. 2024, arXiv 2405.14734)."""

    beta: float = Field(default=2.0, gt=0, le=100)
    """The reward of an answer is beta times its log-probability per token; values from 2 to 10 are
    usual, much larger than for DPO."""
    gamma: float = Field(default=0.5, ge=0, le=100)
    """Margin by which the reward of the chosen answer should exceed that of the rejected one;
    values from 0 to beta are usual. TRL calls it simpo_gamma."""


class Reward(SpecModel):
    """A reward model by the Bradley-Terry loss (Ouyang et al. 2022, arXiv 2203.02155)."""

    centering: float = Field(default=0.0, ge=0, le=10)
    """Weight of the squared sum of both rewards, which keeps them around zero (Eisenstein et al.
    2023, arXiv 2312.09244)."""


class RewardFunction(SpecModel):
    """A reward that a function computes from the answer."""

    model_config = validation_config(
        cel(
            "(self.type == 'regex') == has(self.pattern)",
            "pattern and type regex belong together; set both, or leave pattern out",
            ".pattern",
        )
    )

    type: Literal["exactMatch", "contains", "numeric", "rougeL", "regex", "json", "length"]
    """What is rewarded, with a value from 0 to 1. exactMatch, contains, numeric and rougeL compare
    the answer with the reference, without case and in any script. numeric takes the last number
    of each, exact and without its unit, from the last \\boxed{} where there is one: 1/2,
    \\frac{1}{2}, 0.5 and 50% are equal, and so are 1,200 and 1200; regex: the answer matches the
    pattern; json: the answer is valid JSON; length: 1 for an answer that ended by itself, 0 for one
    that was cut at maxNewTokens."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Pattern that regex searches for in the answer, in the syntax of Python's regex library. A
    search that takes longer than a quarter of a second counts as no match."""
    weight: float = Field(default=1.0, ge=-100, le=100)
    """Weight of this reward in the sum of all rewards."""


class GRPO(SpecModel):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    model_config = validation_config(
        cel(
            "size(self.rewards) > 0 || has(self.rewardModel)",
            "grpo has no reward; set rewards, rewardModel or both",
            ".rewards",
        )
    )

    rewards: list[RewardFunction] = Field(default_factory=list, max_length=8)
    """Reward functions, whose values are summed with their weights. A patch replaces the whole
    list: two of them may have one type, with other patterns."""
    reward_model: ModelAddress | None = None
    """A sequence classifier with one output, such as the artifact of a Reward job; its score of
    the conversation is added with weight 1."""
    generations: int = Field(default=8, ge=2, le=128)
    """Answers that are sampled for each prompt and compared with each other."""
    max_new_tokens: int = Field(default=256, ge=1, le=16384)
    """Maximum length of an answer in tokens."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Sampling temperature."""
    beta: float = Field(default=0.0, ge=0, le=10)
    """Weight of the divergence from the base model, which is the model without its adapters (the
    unbiased low-variance estimate of the paper's equation 4); 0 turns it off."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Clipping range of the ratio of probabilities."""
    updates: int = Field(default=1, ge=1, le=16)
    """Optimizer steps on the same answers; multiplies the steps of an epoch."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How the losses of tokens are averaged, by TRL's names."""
    scale_rewards: bool = True
    """Divide advantages by the standard deviation of their group; the authors of dr_grpo advise
    against it (Liu et al. 2025, arXiv 2503.20783)."""
