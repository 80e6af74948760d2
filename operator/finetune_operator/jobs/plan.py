"""FineTuneJob: what to do next.

Level-triggered: everything follows from the children and the status, nothing from what happened
before. Facts that a later stage needs go into the status with the same write that moves on.
A job that has ended never runs again, whatever happens to its children.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus, StageStatus
from finetune_api.run import StageName
from pydantic import ValidationError

from finetune_operator.decision import Decision, EventRecord, Manifest, Settings, View
from finetune_operator.jobs.conditions import job_conditions
from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.observe import observe
from finetune_operator.jobs.policies.active_deadline import enforce_deadline
from finetune_operator.jobs.policies.node_exclusion import excluded
from finetune_operator.jobs.policies.ttl_after_finished import finished_job
from finetune_operator.jobs.progress import at_rest, trained
from finetune_operator.jobs.stage_runner import run_stage
from finetune_operator.jobs.stages.evaluate import EVALUATE, comparison
from finetune_operator.jobs.stages.export import EXPORT
from finetune_operator.jobs.stages.prepare import PREPARE
from finetune_operator.jobs.stages.serve import run_serve
from finetune_operator.jobs.stages.train import TRAIN
from finetune_operator.jobs.suspend import SUSPENDED, pause_serve, pause_stage, resume
from finetune_operator.manifest import format_time, is_terminal
from finetune_operator.stalled import Stalled

POD_STAGES = (PREPARE, TRAIN, EVALUATE, EXPORT)
EVENT_LIMIT = 1000


def reconcile_job(job: Manifest, view: View, settings: Settings, now: datetime) -> Decision:
    """What a job needs now; `now` must be timezone-aware, in UTC."""
    if job["metadata"].get("deletionTimestamp"):
        return Decision()
    if is_terminal(job):
        return finished_job(job, view, now)
    before = FineTuneJobStatus.readable(job.get("status"))
    try:
        spec = FineTuneJobSpec.model_validate(job.get("spec") or {})
    except ValidationError as error:
        draft = Draft(before, stall=_invalid(error))
        return _decide(job, before, draft, now)
    draft = Draft(before)
    draft.update(stages=_stages(before, spec))
    ctx = Context(job, spec, observe(job, view), view, settings, now)
    if spec.suspend:
        _pause(ctx, draft)
    else:
        resume(draft, now)
        _advance(ctx, draft)
    enforce_deadline(ctx, draft)
    return _decide(job, before, draft, now)


def rejected_job(job: Manifest, why: EventRecord, now: datetime) -> Mapping[str, Any] | None:
    """The status of a job for which the API server refuses a write, a quota for example."""
    if is_terminal(job):
        return None
    before = FineTuneJobStatus.readable(job.get("status"))
    draft = Draft(before, stall=Stalled(why.reason, why.message))
    with suppress(ValidationError):
        draft.update(stages=_stages(before, FineTuneJobSpec.model_validate(job.get("spec") or {})))
    return _decide(job, before, draft, now).status


def _advance(ctx: Context, draft: Draft) -> None:
    """Walk the stages; one that has just ended lets the next one start in the same decision."""
    for stage in POD_STAGES:
        if not run_stage(ctx, draft, stage):
            return
    if ctx.spec.serve is None or run_serve(ctx, draft):
        _finish(draft, ctx.now)


def _pause(ctx: Context, draft: Draft) -> None:
    """Walk the stages; the first one that has not ended well is brought to rest."""
    for stage in POD_STAGES:
        if not pause_stage(ctx, draft, stage):
            return
    if ctx.spec.serve is None or pause_serve(ctx, draft):
        _finish(draft, ctx.now)


def _finish(draft: Draft, now: datetime) -> None:
    status = draft.status
    parts = []
    if status.evaluation is not None:
        parts.append(comparison(status.evaluation))
    if status.endpoint is not None:
        parts.append(f"served at {status.endpoint.url}")
    elif status.artifact is not None:
        parts.append(f"artifact at {status.artifact.uri}")
    progress = status.progress
    if status.training is not None:
        progress = trained(status.training, status.plan, format_time(now))
    draft.update(phase="Succeeded", message="; ".join(parts), progress=progress, failure=None)
    draft.requeue = None


def _stages(status: FineTuneJobStatus, spec: FineTuneJobSpec) -> list[StageStatus]:
    names: list[StageName] = [stage.name for stage in POD_STAGES]
    if spec.serve is not None:
        names.append("serve")
    known = {stage.name: stage for stage in status.stages}
    return [known.get(name) or StageStatus(name=name, state="Pending") for name in names]


def _invalid(error: ValidationError) -> Stalled:
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"])
    return Stalled(
        "InvalidSpec", f"spec.{where}: {detail['msg']}; is the operator older than its CRDs?"
    )


def _decide(job: Manifest, before: FineTuneJobStatus, draft: Draft, now: datetime) -> Decision:
    """Round the draft off: message, conditions, events, one status."""
    generation = int(job["metadata"].get("generation") or 0)
    if draft.ended:
        draft.update(finished_at=format_time(now), suspended_at=None)
        for stage in draft.status.stages:
            draft.update_stage(stage.name, retry_at=None)
        draft.stall, draft.requeue, draft.requests = None, None, []
    elif draft.stall is not None:
        draft.update(message=draft.stall.message[:4096])
    _settle_progress(draft, draft.ended)
    conditions = job_conditions(draft.status, draft.stall, generation, now)
    draft.update(conditions=conditions, observed_generation=generation)
    return Decision(
        create=tuple(draft.create),
        apply=tuple(draft.apply),
        delete=tuple(draft.delete),
        status=draft.status.to_wire(),
        events=tuple(_events(before, draft)),
        requests=tuple(draft.requests),
        requeue_after=draft.requeue,
    )


def _settle_progress(draft: Draft, ended: bool) -> None:
    """Progress is about the running stage; a job that has ended has no time left to tell."""
    progress = draft.status.progress
    if progress is None:
        return
    if ended:
        draft.update(progress=at_rest(progress))
        return
    running = next((s.name for s in draft.status.stages if s.state != "Succeeded"), None)
    if progress.stage != running:
        draft.update(progress=None)


def _events(before: FineTuneJobStatus, draft: Draft) -> Iterator[EventRecord]:
    """What this status says that the one before did not."""
    after = draft.status
    if after.plan is not None and before.plan is None:
        yield EventRecord("Normal", "Planned", after.plan.reason[:EVENT_LIMIT])
    failure = after.failure
    if before.suspended_at and not after.suspended_at and not draft.ended:
        yield EventRecord("Normal", "Resumed", after.message[:EVENT_LIMIT])
    new = failure is not None and failure != before.failure and failure.reason != SUSPENDED
    if failure is not None and new and after.phase != "Failed":
        text = f"{failure.stage} attempt {failure.attempt} ended: {failure.message}"
        yield EventRecord("Warning", failure.reason, text[:EVENT_LIMIT])
    if after.phase != before.phase or not before.conditions:
        message = after.message[:EVENT_LIMIT]
        if after.phase == "Failed" and failure is not None:
            yield EventRecord("Warning", failure.reason, message)
        else:
            yield EventRecord("Normal", after.phase, message)
    yield from _node_events(before, after)
    old = next((c for c in before.conditions if c.type == "Stalled"), None)
    if draft.stall is not None and not (
        old and old.status == "True" and old.reason == draft.stall.reason
    ):
        yield EventRecord("Warning", draft.stall.reason, draft.stall.message[:EVENT_LIMIT])


def _node_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[EventRecord]:
    known = excluded(before.nodes)
    for node in after.nodes:
        if node.excluded and node.name not in known:
            text = f"{node.failures} attempts ended because of node {node.name}; the next ones "
            yield EventRecord("Warning", "NodeExcluded", text + "run elsewhere")
