"""The evaluate stage: is the tuned model better than its base, and by how much?

Both models see the same held-out rows in a process of their own: never inside the training
job, where an evaluation can unwrap a model and thereby change what is trained. The loss is that of
the job's objective; its interval comes from resampling rows, the same rows for both models, so
that what both find hard cancels out (paired bootstrap, Koehn 2004).
"""

from finetune_trainer.runtime.sigterm import block_sigterm

if __name__ == "__main__":
    block_sigterm()

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import EvaluationSummary, MetricPair, RunConfig, StageResult

from finetune_trainer.evaluation.comparison import (
    Measurements,
    PairedLosses,
    gate_failure,
    summarise,
)
from finetune_trainer.evaluation.prompts import COMPARES_ANSWERS, choose_prompts, max_answer_tokens
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.stage import Report, run_stage

REPORT = "report/evaluation.json"


def evaluate(run: RunConfig, report: Report) -> StageResult:
    """Compare both models, write the report and apply the gate."""
    with Attempt(Path(run.paths.job), run.attempt, "evaluate") as attempt:
        return compare(run, report, attempt)


def compare(run: RunConfig, report: Report, attempt: Attempt) -> StageResult:
    """The stage's work, by an attempt that has claimed it."""
    report.update("loading the base model")
    from finetune_trainer.data.tokenizer import load_job_tokenizer
    from finetune_trainer.evaluation.held_out_loss import open_held_out
    from finetune_trainer.evaluation.merge import load_base_model, load_tuned_model, verify_output
    from finetune_trainer.evaluation.parity_probe import PROBE_MARGINS, choose_probe

    spec, job = run.spec, Path(run.paths.job)
    # Early, before minutes are spent on the base model.
    verify_output(job / "output")
    device, dtype = compute_device(run)
    tokenizer = load_job_tokenizer(run)
    held_out = open_held_out(spec, job / "data" / "eval")
    chosen = choose_prompts(run, spec, tokenizer)
    compared = spec.objective in COMPARES_ANSWERS
    rows = held_out.items if held_out else 0
    items = Items(report, 2 * rows + (1 + compared) * len(chosen))

    place = placement(device)
    model = load_base_model(run, dtype, device=place).eval()
    base = examine(
        model, tokenizer, held_out, chosen if compared else [], spec, items, "base model"
    )
    model = load_tuned_model(run, dtype, base=model, device=place).eval()
    tuned = examine(model, tokenizer, held_out, chosen, spec, items, "tuned model")

    # A reward model may need the room.
    del model
    report.update("comparing")
    losses = losses_of(held_out, base, tuned)
    samples = samples_of(chosen, base, tuned)
    rewards = rewards_of(run, spec, samples, device)
    measured = Measurements(losses, accuracies(held_out, base, tuned), rewards, samples)
    summary = summarise(measured, spec)
    digest = write_report(run, attempt, summary, measured, held_out)
    failed = gate_failure(summary)
    return StageResult(
        stage="evaluate",
        attempt=run.attempt,
        outcome="Failed" if failed else "Succeeded",
        failure=failed,
        evaluation=summary,
        probe=choose_probe(tokenizer, samples, PROBE_MARGINS[device]),
        report=REPORT,
        report_digest=digest,
    )


def compute_device(run: RunConfig) -> tuple[str, Any]:
    """Where and in which format both models compute; fp32 on CPUs, which served answers match."""
    import torch

    if run.plan is not None and run.plan.device == "cuda" and torch.cuda.is_available():
        return "cuda", torch.bfloat16
    return "cpu", torch.float32


def placement(device: str) -> str:
    """The device, or all of them: the pod has several only where one cannot hold the model."""
    import torch

    return "auto" if device == "cuda" and torch.cuda.device_count() > 1 else device


class Items:
    """Counts rows and prompts done, for the progress."""

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = total
        self._before = 0

    def start(self, message: str) -> Callable[[int], None]:
        """Begin a part; the returned function is told how much of it is done."""
        before = self._before
        self._report.update(message, step=before, total_steps=self._total)

        def done(count: int) -> None:
            self._before = before + count
            self._report.update(step=self._before)

        return done


@dataclass(frozen=True)
class Findings:
    """What was found out about one model."""

    look: Any
    """A held_out.Look, or None where there is no held-out loss."""
    answers: list[Any]


def examine(
    model: Any,
    tokenizer: Any,
    held_out: Any,
    chosen: Sequence[tuple[dict[str, Any], list[int]]],
    spec: FineTuneJobSpec,
    items: Items,
    name: str,
) -> Findings:
    """Show the model all held-out rows, and take its greedy answers to the chosen prompts."""
    from finetune_trainer.generation.greedy import generate_answers

    look = held_out.look(model, items.start(f"held-out loss of the {name}")) if held_out else None
    if not chosen:
        return Findings(look, [])
    done = items.start(f"answers of the {name}")
    prompts = [tokenised for _, tokenised in chosen]
    answers = generate_answers(model, tokenizer, prompts, max_answer_tokens(spec), done)
    return Findings(look, answers)


def samples_of(
    chosen: Sequence[tuple[dict[str, Any], list[int]]], base: Findings, tuned: Findings
) -> list[Any]:
    """Prompts with the answers of both, or of the tuned model alone."""
    from finetune_trainer.evaluation.parity_probe import AnsweredPrompt

    before: Sequence[Any] = base.answers or [None] * len(chosen)
    return [
        AnsweredPrompt(prompt["messages"], prompt["reference"], one, other)
        for (prompt, _), one, other in zip(chosen, before, tuned.answers, strict=True)
    ]


def losses_of(held_out: Any, base: Findings, tuned: Findings) -> PairedLosses | None:
    """The objective's loss of both models; the base is the reference of both."""
    if held_out is None:
        return None
    before, after = held_out.loss(base.look, base.look), held_out.loss(tuned.look, base.look)
    return PairedLosses(before.each, after.each, before.weights, int(base.look.tokens.sum()))


def accuracies(held_out: Any, base: Findings, tuned: Findings) -> MetricPair | None:
    """How often each model prefers the better answer, where the objective has pairs."""
    if held_out is None:
        return None
    before, after = held_out.accuracy(base.look), held_out.accuracy(tuned.look)
    if before is None or after is None:
        return None
    return MetricPair(base=before, tuned=after)


def rewards_of(
    run: RunConfig, spec: FineTuneJobSpec, samples: Sequence[Any], device: str
) -> list[tuple[float, float]] | None:
    """The summed reward of the base model's and the tuned model's answer to each prompt."""
    if spec.grpo is None:
        return None
    import torch

    from finetune_trainer.rewards.functions import Completion
    from finetune_trainer.rewards.scorer import RewardScorer

    judges = RewardScorer(run, spec.grpo, torch.device(device))
    replies = [
        Completion(s.messages, answer.text, len(answer.tokens) < max_answer_tokens(spec), s.reference)
        for s in samples
        for answer in (s.base, s.tuned)
    ]
    totals = judges.totals(judges(replies))
    if not np.isfinite(totals).all():
        raise UserError(
            "RewardNotFinite",
            "The reward of a held-out answer is not a number.",
            "Check the reward model: it may not belong to its tokenizer.",
        )
    return [(float(before), float(after)) for before, after in totals.reshape(-1, 2)]


def write_report(
    run: RunConfig,
    attempt: Attempt,
    summary: EvaluationSummary,
    measured: Measurements,
    held_out: Any,
) -> str:
    """Everything that was measured, as JSON; returns its digest."""
    losses = measured.losses
    none: list[tuple[float | None, float | None]] = [(None, None)] * len(measured.samples)
    rewards = measured.rewards or none
    examples: list[dict[str, Any]] = []
    if losses is not None:
        each = zip(held_out.units, losses.weights, losses.base, losses.tuned, strict=True)
        examples = [
            {"index": int(i), "weight": int(w), "baseLoss": float(b), "tunedLoss": float(t)}
            for i, w, b, t in each
        ]
    body = {
        "job": run.job.to_wire(),
        "attempt": run.attempt,
        "objective": run.spec.objective,
        # That the chat template was given; then there is no probe.
        "date": run.data.date if run.data else None,
        "summary": summary.to_wire(),
        "examples": examples,
        "samples": [
            {
                "messages": sample.messages,
                "reference": sample.reference,
                "base": said(sample.base, before),
                "tuned": said(sample.tuned, after),
            }
            for sample, (before, after) in zip(measured.samples, rewards, strict=True)
        ],
    }
    data = json.dumps(body, indent=1, ensure_ascii=False).encode()
    path = attempt.job / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt.publish_file(path, data)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def said(answer: Any, reward: float | None) -> dict[str, Any] | None:
    """An answer for the report; None where the model was not asked."""
    if not answer:
        return None
    told = {"text": answer.text, "tokens": len(answer.tokens)}
    return told if reward is None else {**told, "reward": reward}


if __name__ == "__main__":
    raise SystemExit(run_stage("evaluate", evaluate))
