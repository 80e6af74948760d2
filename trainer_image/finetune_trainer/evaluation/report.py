"""The evaluation report: everything that was measured, as one JSON file of the job."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from finetune_api.evaluation_summary import EvaluationSummary
from finetune_api.run_config import RunConfig

from finetune_trainer.runtime.fencing import Attempt

if TYPE_CHECKING:
    from finetune_trainer.evaluation.comparison import Measurements
    from finetune_trainer.evaluation.held_out_loss import HeldOutSet
    from finetune_trainer.generation.greedy import Answer

EVALUATION_REPORT = "report/evaluation.json"
"""Path in the job's folder."""


def write_report(
    run: RunConfig,
    attempt: Attempt,
    summary: EvaluationSummary,
    measurements: Measurements,
    held_out: HeldOutSet | None,
) -> str:
    """Publish the report; returns its digest, `sha256:` and hex."""
    losses, answered = measurements.losses, measurements.answered
    examples: list[dict[str, Any]] = []
    if losses is not None and held_out is not None:
        rows = zip(held_out.indices, losses.weights, losses.base, losses.tuned, strict=True)
        examples = [
            {"index": int(i), "weight": int(w), "baseLoss": float(b), "tunedLoss": float(t)}
            for i, w, b, t in rows
        ]
    no_rewards: list[tuple[float | None, float | None]] = [(None, None)] * len(answered)
    rewards = measurements.rewards or no_rewards
    body = {
        "job": run.job.to_wire(),
        "attempt": run.attempt,
        "objective": run.spec.objective,
        # The date that the chat template printed; with one there is no probe.
        "date": run.data.date if run.data else None,
        "summary": summary.to_wire(),
        "examples": examples,
        "samples": [
            {
                "messages": prompt.messages,
                "reference": prompt.reference,
                "base": _answer_record(prompt.base, base_reward),
                "tuned": _answer_record(prompt.tuned, tuned_reward),
            }
            for prompt, (base_reward, tuned_reward) in zip(answered, rewards, strict=True)
        ],
    }
    content = json.dumps(body, indent=1, ensure_ascii=False).encode()
    path = attempt.job / EVALUATION_REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt.publish_file(path, content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _answer_record(answer: Answer | None, reward: float | None) -> dict[str, Any] | None:
    """An answer and its reward; None where the model gave no answer."""
    if not answer:
        return None
    record = {"text": answer.text, "tokens": len(answer.tokens)}
    return record if reward is None else {**record, "reward": reward}
