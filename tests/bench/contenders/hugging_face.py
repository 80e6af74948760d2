"""Puts turns into a Trainer of transformers, which TRL's and LLaMA-Factory's are."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tests.bench.contenders.turns import Turns, plain_loss


class InTurns(TrainerCallback):
    """One optimizer step a turn; counts the tokens that `training_step` is given."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._tokens = 0

    def count(self, training_step: Any) -> Any:
        """`training_step` that counts; its inputs have a mask, or no padding at all."""

        def counted(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            self._tokens += tokens_of(inputs)
            return training_step(model, inputs, *more, **named)

        return counted

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._turns.start(plain_loss(given["model"]))

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._turns.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._turns.end(self._tokens, plain_loss(given["model"]))
        self._tokens = 0


def tokens_of(inputs: dict[str, Any]) -> int:
    """Tokens that are no padding. A mask of pairs adds 0 where a token sees itself."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return int(inputs["input_ids"].numel())
    if mask.dim() == 2:
        return int((mask > 0).sum())
    return int((mask[:, 0].diagonal(dim1=1, dim2=2) == 0).sum())
