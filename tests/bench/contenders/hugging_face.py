"""Adds turns to a Trainer of transformers, from which those of TRL and LLaMA-Factory derive."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tests.bench.contenders.turns import Turns, plain_loss


class InTurns(TrainerCallback):
    """One optimizer step per turn; counts the tokens that `training_step` gets."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._tokens = 0

    def count_tokens(self, training_step: Any) -> Any:
        """`training_step` that counts tokens; its inputs have a mask, or no padding."""

        def counted(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            self._tokens += non_padding_tokens(inputs)
            return training_step(model, inputs, *more, **named)

        return counted

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        self._turns.start(plain_loss(context["model"]))

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        self._turns.wait_for_turn()

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        self._turns.finish_step(self._tokens, plain_loss(context["model"]))
        self._tokens = 0


def non_padding_tokens(inputs: dict[str, Any]) -> int:
    """Tokens that are not padding. A 4-dimensional mask is additive: 0 if a token sees itself."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return int(inputs["input_ids"].numel())
    if mask.dim() == 2:
        return int((mask > 0).sum())
    return int((mask[:, 0].diagonal(dim1=1, dim2=2) == 0).sum())
