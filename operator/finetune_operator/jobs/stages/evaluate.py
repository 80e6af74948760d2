"""evaluate: the tuned model against its base, and the gate."""

from contextlib import suppress

from finetune_api.evaluation_summary import EvaluationSummary, ProbeRecord
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus, Phase
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
    refusal = None if summary.passed else gate_failure(summary)
    facts = {"evaluation": summary, "probe": _select_probe(result.probe)}
    return Accepted(facts, format_comparison(summary), refusal)


def _select_probe(record: ProbeRecord | None) -> ProbeRecord | None:
    """The recorded probe, unless an endpoint could not ask it."""
    with suppress(ValidationError):
        Probe.model_validate(record.model_dump() if record else None)
        return record
    return None


def format_comparison(summary: EvaluationSummary) -> str:
    """The measurements of both models in one line: the loss, or what the objective has besides or
    instead."""
    parts = []
    if (loss := summary.loss) is not None:
        better = "better" if loss.improvement_percent >= 0 else "worse"
        parts.append(
            f"held-out loss {loss.base:.3f} -> {loss.tuned:.3f}, "
            f"{abs(loss.improvement_percent):.1f} % {better} (95 % interval "
            f"{loss.low_percent:.1f} to {loss.high_percent:.1f} %)"
        )
    if (reward := summary.reward) is not None:
        parts.append(f"mean reward {reward.base:.3f} -> {reward.tuned:.3f}")
    if (preferred := summary.preference_accuracy) is not None:
        parts.append(
            f"better answer preferred {100 * preferred.base:.1f} % -> {100 * preferred.tuned:.1f} %"
        )
    return ", ".join(parts) or f"{summary.generations} answers compared"


def gate_failure(summary: EvaluationSummary) -> Failure:
    """GateNotMet: the rules of the gate that do not hold."""
    broken = [rule for rule in summary.gate if not rule.passed]
    rules = ", ".join(f"{r.metric} improved by {r.measured}, not {r.required}" for r in broken)
    return Failure(
        stage="evaluate",
        reason="GateNotMet",
        message=f"the tuned model is not good enough: {rules or format_comparison(summary)}",
        remedy="train longer or on more data, or lower evaluation.gate",
    )


EVALUATE = PodStage("evaluate", phase, build_config, build_pods, accept)
