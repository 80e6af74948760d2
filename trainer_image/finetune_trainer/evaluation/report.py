"""The evaluation report: everything that was measured, as one JSON file of the job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune_api.evaluation import BASE, TUNED
from finetune_api.evaluation_summary import EvaluationSummary, MetricComparison
from finetune_api.run_config import RunConfig

from finetune_trainer.runtime.fencing import Attempt

if TYPE_CHECKING:
    import numpy as np

    from finetune_trainer.evaluation.comparison import Measurements
    from finetune_trainer.evaluation.held_out_loss import HeldOutSet
    from finetune_trainer.generation.greedy import Answer

EVALUATION_REPORT = "report/evaluation.json"
"""Path in the job's folder."""


def write_report(
    run: RunConfig,
    attempt: Attempt,
    summary: EvaluationSummary,
    comparisons: Sequence[MetricComparison],
    measurements: Measurements,
    held_out: HeldOutSet | None,
    details: dict[str, Any],
) -> str:
    """Publish the report with the `details` of answers; returns its digest, `sha256:` and hex."""
    losses, answered = measurements.losses, measurements.answered
    examples: list[dict[str, Any]] = []
    if losses is not None and held_out is not None:
        rows = zip(held_out.indices, losses.weights, losses.base, losses.tuned, strict=True)
        examples = [
            {"index": int(i), "weight": int(w), "baseLoss": float(b), "tunedLoss": float(t)}
            for i, w, b, t in rows
        ]
    rewards = measurements.rewards or {}
    body = {
        "job": run.job.to_wire(),
        "attempt": run.attempt,
        "objective": run.spec.objective,
        # The date that the chat template printed; with one there is no probe.
        "date": run.data.date if run.data else None,
        "summary": summary.to_wire(),
        # Every metric against every baseline; the summary has the headline.
        "comparisons": [comparison.to_wire() for comparison in comparisons],
        **details,
        "examples": examples,
        "samples": [
            {
                "messages": prompt.messages,
                "reference": prompt.reference,
                BASE: _answer_record(prompt.base, rewards.get(BASE), index),
                TUNED: _answer_record(prompt.tuned, rewards.get(TUNED), index),
                "baselines": {
                    name: _answer_record(answer, rewards.get(name), index)
                    for name, answer in prompt.prompted.items()
                },
            }
            for index, prompt in enumerate(answered)
        ],
    }
    content = json.dumps(body, indent=1, ensure_ascii=False).encode()
    path = attempt.job / EVALUATION_REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt.publish_file(path, content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _answer_record(
    answer: Answer | None, rewards: np.ndarray | None, index: int
) -> dict[str, Any] | None:
    """The answer to a prompt and its reward; None where the model gave no answer."""
    if not answer:
        return None
    record = {"text": answer.text, "tokens": len(answer.tokens)}
    return record if rewards is None else {**record, "reward": float(rewards[index])}
