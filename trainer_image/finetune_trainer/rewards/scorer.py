"""The rewards of a GRPO job, computed and learnt, for training and for evaluation alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_api.finetunejob import GRPO
from finetune_api.run_config import RunConfig
from numpy.typing import NDArray

from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.data.tokenizer import decode_tokens
from finetune_trainer.rewards.reward_functions import Completion, make_score_function, name_rewards
from finetune_trainer.rewards.reward_model import load_reward_model

REWARD_MODEL = "rewardModel"
"""Name of the reward model's reward; its weight is 1."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the job's data with its reference answer, if it has one."""

    messages: list[dict[str, str]]
    reference: str | None

    def decode_completion(
        self, tokenizer: Any, tokens: Sequence[int], has_ended: bool
    ) -> Completion:
        """A completion of it, from its tokens without the one that ends the turn."""
        text = decode_tokens(tokenizer, tokens)
        return Completion(self.messages, text, has_ended, self.reference)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file of {messages, reference}, in its order."""
    return [Prompt(row["messages"], row.get("reference")) for row in read_json_lines(path)]


class RewardScorer:
    """Computes every reward of a job and their weighted sum."""

    def __init__(self, run: RunConfig, settings: GRPO, device: torch.device) -> None:
        self._functions = [make_score_function(function) for function in settings.rewards]
        self._model = load_reward_model(run, settings, device)
        learnt = [REWARD_MODEL] if self._model else []
        self.names = [*name_rewards(settings.rewards), *learnt]
        """One for each reward."""
        self._weights = np.array(
            [*(each.weight for each in settings.rewards), *(1.0 for _ in learnt)]
        )

    def score(self, completions: Sequence[Completion]) -> list[tuple[float, ...]]:
        """The rewards of each completion, in the order of `names`."""
        columns: list[Sequence[float]] = [
            [function(completion) for completion in completions] for function in self._functions
        ]
        if self._model is not None:
            columns.append(self._model.score(completions).tolist())
        return list(zip(*columns, strict=True))

    def sum_weighted(self, rewards: Sequence[tuple[float, ...]]) -> NDArray[np.float64]:
        """The weighted sum of each completion's rewards, float64 [completions]."""
        return np.asarray(rewards, dtype=np.float64).reshape(-1, len(self.names)) @ self._weights
