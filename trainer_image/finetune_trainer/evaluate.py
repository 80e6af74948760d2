"""The evaluate stage: is the tuned model better than its base, and by how much?

Both models see the same held-out rows in a process of their own: never inside the training
job, where an evaluation can unwrap a model and thereby change what is trained. The loss is
weighted by tokens; its interval comes from resampling rows, the same rows for both models, so
that what both find hard cancels out (paired bootstrap, Koehn 2004).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.finetunejob import Evaluation, FineTuneJobSpec, GateRule
from finetune_api.run import (
    EvaluationSummary,
    Failure,
    GateOutcome,
    LossComparison,
    MetricPair,
    RunConfig,
    StageResult,
)

from finetune_trainer.metrics.bootstrap import bootstrap
from finetune_trainer.metrics.exact_match import exact_match
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.stage import Report, UserError, run_stage
from finetune_trainer.telemetry import write_atomically

REPORT = "report/evaluation.json"
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}


def evaluate(run: RunConfig, report: Report) -> StageResult:
    """Compare both models, write the report and apply the gate."""
    report.update("loading the base model")
    from finetune_trainer.data.store import TokenStore
    from finetune_trainer.data.tokenizer import job_tokenizer, prints_date
    from finetune_trainer.merge import base_folder, tuned_model, verify
    from finetune_trainer.methods import load_model
    from finetune_trainer.probe import PROBE_MARGINS, Sample, choose_probe

    spec, job = FineTuneJobSpec.model_validate(run.spec), Path(run.paths.job)
    wanted = spec.evaluation
    # Early, before minutes are spent on the base model.
    verify(job / "output")
    device, dtype = compute_device(run)
    tokenizer = job_tokenizer(run)
    store = TokenStore.open(job / "data" / "eval")
    order = np.random.default_rng(spec.training.seed).permutation(store.rows)
    rows = [store.row(int(index)) for index in order[: wanted.max_samples]]
    prompts = held_out_prompts(job / "data" / "eval.jsonl")
    chosen = answerable(run, wanted, tokenizer, [prompts[int(i)] for i in order])
    items = Items(report, 2 * (len(rows) + len(chosen)))

    place = placement(device)
    model = load_model(base_folder(run), dtype, device=place).eval()
    base = judge(model, tokenizer, rows, chosen, wanted, items, "base model")
    model = tuned_model(run, dtype, base=model, device=place).eval()
    tuned = judge(model, tokenizer, rows, chosen, wanted, items, "tuned model")

    report.update("comparing")
    samples = [
        Sample(prompt["messages"], prompt["reference"], before, after)
        for (prompt, _), before, after in zip(chosen, base.answers, tuned.answers, strict=True)
    ]
    summary = summarise(base, tuned, samples, wanted.gate, spec.training.seed)
    digest = write_report(run, job / REPORT, summary, base, tuned, samples, order)
    failed = gate_failure(summary)
    return StageResult(
        stage="evaluate",
        attempt=run.attempt,
        outcome="Failed" if failed else "Succeeded",
        failure=failed,
        evaluation=summary,
        # A server would print another date, and so answer another prompt.
        probe=None
        if prints_date(tokenizer)
        else choose_probe(tokenizer, samples, PROBE_MARGINS[device]),
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


def held_out_prompts(path: Path) -> list[dict[str, Any]]:
    """Conversations and references, in the order of the held-out store."""
    with path.open() as file:
        return [json.loads(line) for line in file]


def answerable(
    run: RunConfig, wanted: Evaluation, tokenizer: Any, prompts: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], list[int]]]:
    """The first prompts that leave room for an answer in the model's context, tokenised."""
    from finetune_trainer.generate import render

    context = run.model.context_length if run.model else 1 << 30
    found: list[tuple[dict[str, Any], list[int]]] = []
    for prompt in prompts:
        if len(found) == wanted.generations:
            break
        tokens = render(tokenizer, prompt["messages"])
        if len(tokens) + wanted.max_new_tokens <= context:
            found.append((prompt, tokens))
    return found


@dataclass(frozen=True)
class Verdict:
    """What one model made of the held-out rows."""

    losses: np.ndarray
    """Summed negative log-likelihood of each row's answer in nats, float64 [rows]."""
    tokens: np.ndarray
    """Answer tokens of each row, int64 [rows]."""
    answers: list[Any]


def judge(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Any],
    chosen: Sequence[tuple[dict[str, Any], list[int]]],
    wanted: Evaluation,
    items: Items,
    name: str,
) -> Verdict:
    """Losses of all rows, and greedy answers to the chosen prompts."""
    from finetune_trainer.generate import answer_all

    losses, tokens = row_losses(model, rows, items.start(f"held-out loss of the {name}"))
    done = items.start(f"answers of the {name}")
    prompts = [tokenised for _, tokenised in chosen]
    answers = answer_all(model, tokenizer, prompts, wanted.max_new_tokens, done)
    return Verdict(losses, tokens, answers)


def row_losses(
    model: Any, rows: Sequence[Any], progress: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss and number of answer tokens of each row."""
    import torch

    from finetune_trainer.objectives.batches import collate
    from finetune_trainer.objectives.language import AnswerLoss

    loss_of = AnswerLoss(model)
    losses, tokens = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    done = 0
    with torch.inference_mode():
        for members in batches_by_length([len(row.input_ids) for row in rows], model.device.type):
            batch = collate([rows[index] for index in members])
            each = loss_of(model, batch, model.device).double().cpu().numpy()
            owners = np.asarray(members)[batch.owners.numpy()]
            np.add.at(losses, owners, each)
            np.add.at(tokens, owners, 1)
            done += len(members)
            progress(done)
    loss_of.remove()
    return losses, tokens


def batches_by_length(lengths: Sequence[int], device: str) -> list[list[int]]:
    """Indices of rows of similar length, in batches that with padding fit a token budget."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > TOKENS_PER_BATCH[device]:
            batches.append([])
        batches[-1].append(index)
    return batches


def compare_losses(base: Verdict, tuned: Verdict, seed: int) -> LossComparison:
    """Token-weighted losses, and the 95 % interval of the relative improvement."""
    tokens = int(base.tokens.sum())
    before, after = float(base.losses.sum()), float(tuned.losses.sum())
    if not np.isfinite(before) or not np.isfinite(after) or not tokens or before <= 0:
        raise UserError(
            "LossNotFinite",
            f"The held-out loss is {before} of the base and {after} of the tuned model "
            f"over {tokens} answer tokens.",
            "Lower training.learningRate, or give a larger held-out set.",
        )
    low, high = bootstrap(base.losses, tuned.losses, seed)
    return LossComparison(
        base=before / tokens,
        tuned=after / tokens,
        improvement_percent=100 * (before - after) / before,
        low_percent=low,
        high_percent=high,
        tokens=tokens,
    )


def summarise(
    base: Verdict, tuned: Verdict, samples: Sequence[Any], rules: Sequence[GateRule], seed: int
) -> EvaluationSummary:
    """All measures and how the gate's rules go."""

    def pair(score: Callable[[str, str], float]) -> MetricPair | None:
        if not samples:
            return None
        return MetricPair(
            base=float(np.mean([score(s.base.text, s.reference) for s in samples])),
            tuned=float(np.mean([score(s.tuned.text, s.reference) for s in samples])),
        )

    loss = compare_losses(base, tuned, seed)
    exact = pair(exact_match)
    rouge = pair(rouge_l)
    gate = [apply_rule(rule, loss, {"exactMatch": exact, "rougeL": rouge}) for rule in rules]
    return EvaluationSummary(
        loss=loss,
        exact_match=exact,
        rouge_l=rouge,
        generations=len(samples),
        gate=gate,
        passed=all(outcome.passed for outcome in gate),
    )


def apply_rule(
    rule: GateRule, loss: LossComparison, pairs: dict[str, MetricPair | None]
) -> GateOutcome:
    """Loss is measured relative to the base, the others in points of a hundred above it."""
    required = float(rule.min_improvement.rstrip("%"))
    if rule.metric == "loss":
        measured: float | None = loss.improvement_percent
    else:
        pair = pairs[rule.metric]
        measured = 100 * (pair.tuned - pair.base) if pair else None
    return GateOutcome(
        metric=rule.metric,
        required=rule.min_improvement,
        measured="not measured" if measured is None else f"{measured:.2f}%",
        passed=measured is not None and measured >= required,
    )


def gate_failure(summary: EvaluationSummary) -> Failure | None:
    """The failure of a model that may not be served."""
    broken = [outcome for outcome in summary.gate if not outcome.passed]
    if not broken:
        return None
    listed = ", ".join(f"{o.metric} improved by {o.measured}, not {o.required}" for o in broken)
    return Failure(
        reason="GateNotMet",
        message=f"The tuned model is not good enough: {listed}.",
        remedy="Look at the answers in the evaluation report; train longer, on more or better "
        "data, or ask less of evaluation.gate.",
    )


def write_report(
    run: RunConfig,
    path: Path,
    summary: EvaluationSummary,
    base: Verdict,
    tuned: Verdict,
    samples: Sequence[Any],
    order: np.ndarray,
) -> str:
    """Everything that was measured, as JSON; returns its digest."""
    measured = zip(order, base.tokens, base.losses, tuned.losses, strict=False)
    body = {
        "job": run.job.to_wire(),
        "attempt": run.attempt,
        "summary": summary.to_wire(),
        "examples": [
            {"index": int(i), "tokens": int(n), "baseLoss": float(b), "tunedLoss": float(t)}
            for i, n, b, t in measured
        ],
        "samples": [
            {
                "messages": sample.messages,
                "reference": sample.reference,
                "base": {"text": sample.base.text, "tokens": len(sample.base.tokens)},
                "tuned": {"text": sample.tuned.text, "tokens": len(sample.tuned.tokens)},
            }
            for sample in samples
        ],
    }
    data = json.dumps(body, indent=1, ensure_ascii=False).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


if __name__ == "__main__":
    raise SystemExit(run_stage("evaluate", evaluate))
