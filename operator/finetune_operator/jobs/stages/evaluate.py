"""evaluate: the tuned model against its base, and the gate."""

from finetune_api.evaluation import BASE
from finetune_api.evaluation_summary import EvaluationSummary, MetricComparison, ProbeRecord
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus, Phase
from finetune_api.gate_report import format_interval, gate_failure
from finetune_api.metrics import METRICS, Metric
from finetune_api.modelendpoint import Probe
from finetune_api.run_config import Paths, RunConfig
from finetune_api.stage_result import StageResult
from pydantic import ValidationError

from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.stages.base import Accepted, PodStage, planned_profile
from finetune_operator.jobs.stages.prepare import reward_mount
from finetune_operator.names import job_path, model_path
from finetune_operator.planner.serving import plan_serving_devices
from finetune_operator.profiles import find_profile
from finetune_operator.resources.pod import Mount, StagePods
from finetune_operator.resources.resource_requirements import build_device_resources
from finetune_operator.stalled import Stalled


def phase(attempt: Attempt | None) -> Phase:
    return "Evaluating"


def build_config(
    ctx: Context, status: FineTuneJobStatus, attempt: int
) -> RunConfig | Stalled | Failure:
    """With the plan and the facts that train had."""
    return ctx.run_config(
        "evaluate",
        attempt,
        plan=status.plan,
        model=status.model,
        data=status.data,
        reward=status.reward,
    )


def build_pods(ctx: Context, status: FineTuneJobStatus, config: RunConfig) -> StagePods | Stalled:
    """One pod with the profile of the training, with one device, or as many as inference needs."""
    profile = find_profile(ctx.view, planned_profile(ctx, config.plan))
    if isinstance(profile, Stalled):
        return profile
    devices = plan_serving_devices(config.model, profile.name, profile.spec) if config.model else 1
    if isinstance(devices, Failure):
        devices = profile.spec.devices_per_node
    model = ctx.spec.model
    return StagePods(
        resources=build_device_resources(profile.spec, devices),
        shared_memory=profile.spec.shared_memory,
        mounts=(
            Mount(Paths().model_cache, model_path(model.uri, model.revision), is_read_only=True),
            Mount(Paths().job, job_path(ctx.uid)),
            *reward_mount(ctx.spec, is_read_only=True),
        ),
        profile=profile.spec,
    )


def accept(ctx: Context, result: StageResult) -> Accepted | None:
    """The comparison; a gate that does not hold ends the job, and its status keeps the figures."""
    summary = result.evaluation
    if summary is None:
        return None
    refusal = gate_failure(summary)
    facts = {"evaluation": summary, "probe": _select_probe(result.probe)}
    return Accepted(facts, format_comparison(summary), refusal)


def _select_probe(record: ProbeRecord | None) -> ProbeRecord | None:
    """The recorded probe; None where there is none, or an endpoint could not ask it."""
    if record is None:
        return None
    try:
        Probe.model_validate(record.model_dump())
    except ValidationError:
        return None
    return record


def format_comparison(summary: EvaluationSummary) -> str:
    """The figures of the objective for both models in one line, and what limits them."""
    found = [(METRICS[each.metric], each) for each in summary.comparisons if each.baseline == BASE]
    # Answers are compared in the status; of GRPO they are all there is.
    shown = [each for each in found if not each[0].is_of_answers or each[0].unit == "Reward"]
    parts = [_format_metric(metric, comparison) for metric, comparison in shown or found[:1]]
    if best := summary.best_prompt:
        verdict = "better" if best.is_beaten else "not shown to be better"
        parts.append(f"{verdict} than the best prompt, {best.baseline}")
    parts += summary.warnings
    return "; ".join(parts) or f"{summary.generations} answers compared"


def _format_metric(metric: Metric, found: MetricComparison) -> str:
    pair = f"{metric.label} {found.value:.3f} -> {found.tuned:.3f}"
    if found.relative_percent is None:
        return f"{pair} (95 % interval of the difference {found.low:.3f} to {found.high:.3f})"
    better = "better" if found.relative_percent >= 0 else "worse"
    low, high = found.relative_low_percent or 0.0, found.relative_high_percent or 0.0
    return (
        f"{pair}, {abs(found.relative_percent):.1f} % {better} "
        f"(95 % interval {format_interval(low, high, 'Percent')})"
    )


EVALUATE = PodStage("evaluate", phase, build_config, build_pods, accept)
