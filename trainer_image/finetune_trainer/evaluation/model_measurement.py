"""Measures one model at a time, and pairs the results of the base and the tuned model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig

from finetune_trainer.evaluation.comparison import (
    PairedLosses,
    PairedStatistics,
    answers_by_name,
)
from finetune_trainer.evaluation.held_out_loss import HeldOutSet, ModelOutputs
from finetune_trainer.evaluation.parity_probe import AnsweredPrompt
from finetune_trainer.evaluation.prompts import HeldOutPrompt, max_answer_tokens
from finetune_trainer.generation.greedy import Answer, generate_answers
from finetune_trainer.rewards.reward_functions import Completion
from finetune_trainer.rewards.scorer import RewardScorer
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.telemetry import Report


class ItemProgress:
    """Reports how many of all held-out rows and prompts are done."""

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0

    def start_part(self, message: str) -> Callable[[int], None]:
        """Begin a part; call the returned function with the number of its items that are done."""
        before = self._done
        self._report.update(message, step=before, total_steps=self._total)

        def report_done(count: int) -> None:
            self._done = before + count
            self._report.update(step=self._done)

        return report_done


@dataclass(frozen=True)
class ModelMeasurement:
    """What was measured of one model."""

    outputs: ModelOutputs | None
    """None where the objective has no held-out loss."""
    answers: list[Answer]
    prompted: dict[str, list[Answer]]
    """Answers to the prompts of the baselines, by name; empty for the tuned model."""


def measure_model(
    model: Any,
    tokenizer: Any,
    held_out: HeldOutSet | None,
    prompts: Sequence[HeldOutPrompt],
    spec: FineTuneJobSpec,
    progress: ItemProgress,
    name: str,
    baselines: Sequence[str] = (),
) -> ModelMeasurement:
    """Run a model on all held-out rows, and generate its greedy answers to the prompts, also to
    those of the named baselines."""
    outputs = None
    if held_out:
        report_done = progress.start_part(f"held-out loss of the {name}")
        outputs = held_out.run_model(model, report_done)
    if not prompts:
        return ModelMeasurement(outputs, [], {})

    def answer(inputs: Sequence[list[int]], whose: str) -> list[Answer]:
        report_done = progress.start_part(f"answers of the {whose}")
        return generate_answers(model, tokenizer, inputs, max_answer_tokens(spec), report_done)

    answers = answer([prompt.input_ids for prompt in prompts], name)
    prompted = {
        each: answer([p.baselines[each].input_ids for p in prompts], f"baseline {each}")
        for each in baselines
    }
    return ModelMeasurement(outputs, answers, prompted)


def pair_losses(
    held_out: HeldOutSet | None, base: ModelMeasurement, tuned: ModelMeasurement
) -> PairedLosses | None:
    """The objective's loss of both models; the base is the reference model of both."""
    if held_out is None or base.outputs is None or tuned.outputs is None:
        return None
    base_losses = held_out.compute_losses(base.outputs, base.outputs)
    tuned_losses = held_out.compute_losses(tuned.outputs, base.outputs)
    tokens = int(base.outputs.tokens.sum())
    return PairedLosses(base_losses.losses, tuned_losses.losses, base_losses.weights, tokens)


def pair_preferences(
    held_out: HeldOutSet | None, base: ModelMeasurement, tuned: ModelMeasurement
) -> PairedStatistics | None:
    """How often each model prefers the better answer; None without preferences."""
    if held_out is None or base.outputs is None or tuned.outputs is None:
        return None
    base_preferences = held_out.measure_preferences(base.outputs)
    tuned_preferences = held_out.measure_preferences(tuned.outputs)
    if base_preferences is None or tuned_preferences is None:
        return None
    return PairedStatistics(base_preferences, tuned_preferences)


def pair_answers(
    prompts: Sequence[HeldOutPrompt], base: ModelMeasurement, tuned: ModelMeasurement
) -> list[AnsweredPrompt]:
    """Each prompt with the answers of all, or of the tuned model alone."""
    base_answers: Sequence[Answer | None] = base.answers or [None] * len(prompts)
    return [
        AnsweredPrompt(
            prompt.messages,
            prompt.reference,
            base_answers[index],
            tuned.answers[index],
            prompt.context,
            {name: answers[index] for name, answers in base.prompted.items()},
        )
        for index, prompt in enumerate(prompts)
    ]


def score_answers(
    run: RunConfig, answered: Sequence[AnsweredPrompt], device: str
) -> dict[str, np.ndarray] | None:
    """The weighted reward of each answer, float64 [prompts], by the name of the baseline, and under
    TUNED; None without GRPO.

    Raises UserError RewardNotFinite.
    """
    spec = run.spec
    if spec.grpo is None:
        return None
    answers = answers_by_name(answered)
    scorer = RewardScorer(run, spec.grpo, torch.device(device))
    completions = [
        Completion(
            prompt.messages,
            answer.text,
            len(answer.tokens) < max_answer_tokens(spec),
            prompt.reference,
        )
        for given in answers.values()
        for prompt, answer in zip(answered, given, strict=True)
    ]
    totals = scorer.sum_weighted(scorer.score(completions))
    if not np.isfinite(totals).all():
        raise UserError(
            "RewardNotFinite",
            "The reward of a held-out answer is not a number.",
            "Check the reward model: it may not belong to its tokenizer.",
        )
    return dict(zip(answers, totals.reshape(len(answers), -1), strict=True))
