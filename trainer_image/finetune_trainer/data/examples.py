"""Training rows that show a model the task in its prompt: the examples of few-shot baselines."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.finetunejob import FineTuneJobSpec

from finetune_trainer.data.message_forms import NO_CONTEXT
from finetune_trainer.data.samples import MessagesSample, Sample
from finetune_trainer.data.split import shuffle
from finetune_trainer.runtime.errors import UserError


def count_examples(spec: FineTuneJobSpec) -> int:
    """The most examples that a baseline of the evaluation has."""
    return max((baseline.examples or 0 for baseline in spec.evaluation.baselines), default=0)


def choose_examples(
    train: Sequence[Sample], held_out: Sequence[Sample], spec: FineTuneJobSpec
) -> list[MessagesSample]:
    """As many distinct training samples as a baseline needs, in an order that the seed decides.

    None has the question of a held-out sample, not even with another system turn or answer: the
    prompt would contain it with its answer.

    Raises UserError where there are fewer that can be turns of another conversation.
    """
    count = count_examples(spec)
    if not count:
        return []
    asked = {
        question
        for each in held_out
        if isinstance(each, MessagesSample)
        for question in _questions(each)[-1:]
    }
    fitting = [
        each
        for each in train
        if isinstance(each, MessagesSample)
        and _can_be_turns(each)
        and asked.isdisjoint(_questions(each))
    ]
    chosen = list({each.key: each for each in shuffle(fitting, spec.training.seed)}.values())
    if len(chosen) < count:
        raise UserError(
            "TooFewExamples",
            f"A baseline of evaluation.baselines has {count} examples, and the training data has "
            f"{len(chosen)} distinct rows of user and assistant turns, without tools and without "
            "the question of a held-out row.",
            f"Set its examples to {len(chosen)} or less, or leave it out.",
        )
    return chosen[:count]


def _questions(sample: MessagesSample) -> list[str]:
    """The turns of the user, without differences in case and white space."""
    asked = (turn.content for turn in sample.turns if turn.role == "user")
    return [" ".join(text.casefold().split()) for text in asked]


def _can_be_turns(sample: MessagesSample) -> bool:
    roles = [turn.role for turn in sample.turns if turn.role != "system"]
    is_alternating = roles == ["user", "assistant"] * (len(roles) // 2)
    return (
        is_alternating
        and sample.context == NO_CONTEXT
        and all(turn.is_plain for turn in sample.turns)
    )
