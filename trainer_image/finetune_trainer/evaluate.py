"""The evaluate stage: is the tuned model better than its base, and by how much?

Of a job with model.adapter the base is the model with that adapter, from which training continued.

Both models get the same held-out rows, in a process of their own and never inside the training
job, where an evaluation can unwrap a model and thereby change what is trained. The loss is that of
the job's objective; its interval comes from resampling rows, the same rows for both models, so
that rows which are hard for both cancel out (paired bootstrap, Koehn 2004).
"""

from finetune_trainer.runtime.sigterm import block_sigterm

if __name__ == "__main__":
    block_sigterm()

from pathlib import Path
from typing import Any

from finetune_api.gate_report import gate_failure
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult

from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.evaluation.answer_metrics import describe_answers
from finetune_trainer.evaluation.comparison import Measurements, compare_all, summarise
from finetune_trainer.evaluation.metric_choice import choose_metrics
from finetune_trainer.evaluation.prompts import (
    OBJECTIVES_WITH_ANSWERS,
    choose_prompts,
    list_references,
)
from finetune_trainer.evaluation.report import EVALUATION_REPORT, write_report
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.stage import run_stage
from finetune_trainer.runtime.telemetry import Report


def evaluate(run: RunConfig, report: Report) -> StageResult:
    """Compare both models, write the report and apply the gate."""
    with Attempt(Path(run.paths.job), run.attempt, "evaluate") as attempt:
        return compare_models(run, report, attempt)


def compare_models(run: RunConfig, report: Report, attempt: Attempt) -> StageResult:
    """The stage's work, for an attempt that has claimed the stage."""
    report.update("loading the base model")
    from finetune_trainer.data.tokenizer import load_job_tokenizer
    from finetune_trainer.evaluation import model_measurement
    from finetune_trainer.evaluation.held_out_loss import open_held_out
    from finetune_trainer.evaluation.merge import (
        load_initial_model,
        load_tuned_model,
        verify_output,
    )
    from finetune_trainer.evaluation.parity_probe import PROBE_MARGINS, choose_probe

    spec, job = run.spec, Path(run.paths.job)
    # First, before loading the base model takes minutes.
    verify_output(job / "output")

    # Choose the rows and the prompts.
    tokenizer = load_job_tokenizer(run)
    held_out = open_held_out(spec, job / "data" / "eval")
    prompts = choose_prompts(run, tokenizer)
    rows = read_json_lines(job / "data" / "eval.jsonl")
    choice = choose_metrics(spec, list_references(spec, rows))
    base_prompts = prompts if spec.objective in OBJECTIVES_WITH_ANSWERS else []
    sequences = held_out.sequence_count if held_out else 0
    baselines = [baseline.name for baseline in spec.evaluation.baselines]
    total = 2 * sequences + (1 + len(baselines)) * len(base_prompts) + len(prompts)
    progress = model_measurement.ItemProgress(report, total)

    # Measure one model after the other: two may be more than the device holds.
    device, dtype = choose_device(run)
    place = choose_placement(device)
    model = load_initial_model(run, dtype, device=place).eval()
    base = model_measurement.measure_model(
        model, tokenizer, held_out, base_prompts, spec, progress, "base model", baselines
    )
    model = load_tuned_model(run, dtype, base=model, device=place).eval()
    tuned = model_measurement.measure_model(
        model, tokenizer, held_out, prompts, spec, progress, "tuned model"
    )
    # A reward model may need its memory.
    del model

    # Compare them, write the report, apply the gate, and choose the probe.
    report.update("comparing")
    answered = model_measurement.pair_answers(prompts, base, tuned)
    measurements = Measurements(
        losses=model_measurement.pair_losses(held_out, base, tuned),
        preferences=model_measurement.pair_preferences(held_out, base, tuned),
        rewards=model_measurement.score_answers(run, answered, device),
        answered=answered,
    )
    comparisons = compare_all(measurements, choice, spec)
    summary = summarise(comparisons, measurements, spec)
    answers, references = measurements.texts()
    details = describe_answers(answers, references, choice, spec.evaluation.normalization)
    digest = write_report(run, attempt, summary, comparisons, measurements, held_out, details)
    failure = gate_failure(summary)
    return StageResult(
        stage="evaluate",
        attempt=run.attempt,
        outcome="Failed" if failure else "Succeeded",
        failure=failure,
        evaluation=summary,
        # A model that is not exported needs none, and the table of the gate needs its space.
        probe=None if failure else choose_probe(tokenizer, answered, PROBE_MARGINS[device]),
        report=EVALUATION_REPORT,
        report_digest=digest,
    )


def choose_device(run: RunConfig) -> tuple[str, Any]:
    """Device and dtype of both models; on CPUs fp32, with which served answers agree."""
    import torch

    if run.plan is not None and run.plan.device == "cuda" and torch.cuda.is_available():
        return "cuda", torch.bfloat16
    return "cpu", torch.float32


def choose_placement(device: str) -> str:
    """One device, or all: the pod has several only where one cannot hold the model."""
    import torch

    return "auto" if device == "cuda" and torch.cuda.device_count() > 1 else device


if __name__ == "__main__":
    raise SystemExit(run_stage("evaluate", evaluate))
