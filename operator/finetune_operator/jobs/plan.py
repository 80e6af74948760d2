"""FineTuneJob: what to do next. `reconcile_job` is the table of contents of a job.

Level-triggered: everything follows from the children and the status, nothing from what happened
before. Facts that a later stage needs go into the status in the same write that moves on to it.
A terminal job never runs again, whatever happens to its children.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus, StageStatus
from finetune_api.jobspec import FineTuneJobSpec
from finetune_api.protocol import StageName
from pydantic import ValidationError

from finetune_operator.decision import Decision, EventRecord, Manifest, Settings, View
from finetune_operator.jobs.draft import MESSAGE_LIMIT, Context, Draft
from finetune_operator.jobs.observe import observe
from finetune_operator.jobs.policies.active_deadline import check_deadline
from finetune_operator.jobs.policies.ttl_after_finished import clean_up_terminal_job
from finetune_operator.jobs.progress import clear_running_fields, final_progress
from finetune_operator.jobs.reporting import job_conditions, job_events
from finetune_operator.jobs.stage_runner import run_serve, run_stage, suspend_serve, suspend_stage
from finetune_operator.jobs.stages.evaluate import EVALUATE, format_comparison
from finetune_operator.jobs.stages.export import EXPORT
from finetune_operator.jobs.stages.prepare import PREPARE
from finetune_operator.jobs.stages.train import TRAIN
from finetune_operator.jobs.suspend import resume
from finetune_operator.manifest import format_time, is_terminal
from finetune_operator.stalled import Stalled

POD_STAGES = (PREPARE, TRAIN, EVALUATE, EXPORT)


def reconcile_job(job: Manifest, view: View, settings: Settings, now: datetime) -> Decision:
    """What a job needs now; `now` must be timezone-aware, in UTC."""
    meta = job["metadata"]
    if meta.get("deletionTimestamp"):
        return Decision()  # the children go with their owner

    # A terminal job: stop what still runs, and delete the job after its time to live.
    if is_terminal(job):
        return clean_up_terminal_job(job, view, settings, now)

    timestamp = format_time(now)
    before = FineTuneJobStatus.from_stored(job.get("status"))
    try:
        spec = FineTuneJobSpec.model_validate(job.get("spec") or {})
    except ValidationError as error:
        return _round_off(
            job, before, Draft(before, stalled=_describe_invalid_spec(error)), timestamp
        )
    draft = Draft(before.model_copy(update={"stages": _list_stages(before, spec)}))

    # What exists: every attempt of every stage, from its Job, its pods and its ConfigMap.
    ctx = Context(
        job=job,
        spec=spec,
        observed=observe(job, view),
        view=view,
        settings=settings,
        now=now,
        timestamp=timestamp,
    )

    # A suspended job walks the same stages, and stops the first one that has not succeeded.
    if not spec.suspend and before.suspended_at:
        draft.update(**resume(before, now))
    advance, advance_serve = run_stage, run_serve
    if spec.suspend:
        advance, advance_serve = suspend_stage, suspend_serve

    # A stage that succeeds lets the next one start in the same decision.
    has_artifact = all(advance(ctx, draft, stage) for stage in POD_STAGES)
    if has_artifact and (spec.serve is None or advance_serve(ctx, draft)):
        _succeed(draft, timestamp)

    # The deadline; a job that is being suspended may take its time to save.
    if spec.active_deadline_seconds and not spec.suspend and not draft.has_ended:
        left = check_deadline(draft.status, spec.active_deadline_seconds, now)
        if isinstance(left, Failure):
            # What the stages would create or delete is dropped with the job.
            draft.create, draft.delete = [], []
            assert left.stage is not None, "check_deadline names the stage"
            draft.fail(left.stage, left)
        elif left is not None:
            draft.requeue_within(left)

    return _round_off(job, before, draft, timestamp)


def build_rejected_job_status(
    job: Manifest, why: EventRecord, now: datetime
) -> Mapping[str, Any] | None:
    """The status of a job for which the API server rejects a write, for a quota for example."""
    if is_terminal(job):
        return None
    before = FineTuneJobStatus.from_stored(job.get("status"))
    draft = Draft(before, stalled=Stalled(why.reason, why.message))
    with suppress(ValidationError):
        spec = FineTuneJobSpec.model_validate(job.get("spec") or {})
        draft.update(stages=_list_stages(before, spec))
    return _round_off(job, before, draft, format_time(now)).status


def _list_stages(status: FineTuneJobStatus, spec: FineTuneJobSpec) -> list[StageStatus]:
    names: list[StageName] = [stage.name for stage in POD_STAGES]
    if spec.serve is not None:
        names.append("serve")
    known = {stage.name: stage for stage in status.stages}
    return [known.get(name) or StageStatus(name=name, state="Pending") for name in names]


def _describe_invalid_spec(error: ValidationError) -> Stalled:
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"])
    return Stalled(
        "InvalidSpec", f"spec.{where}: {detail['msg']}; is the operator older than its CRDs?"
    )


def _succeed(draft: Draft, timestamp: str) -> None:
    status = draft.status
    parts = []
    if status.evaluation is not None:
        parts.append(format_comparison(status.evaluation))
    if status.endpoint is not None:
        parts.append(f"served at {status.endpoint.url}")
    elif status.artifact is not None:
        parts.append(f"artifact at {status.artifact.uri}")
    progress = status.progress
    if status.training is not None:
        progress = final_progress(status.training, status.plan, timestamp)
    draft.update(phase="Succeeded", message="; ".join(parts), progress=progress, failure=None)


def _round_off(job: Manifest, before: FineTuneJobStatus, draft: Draft, timestamp: str) -> Decision:
    """The decision that a draft has become: message, progress, conditions, events."""
    progress = draft.status.progress
    if draft.has_ended:
        stages = [stage.model_copy(update={"retry_at": None}) for stage in draft.status.stages]
        draft.update(
            finished_at=timestamp,
            suspended_at=None,
            stages=stages,
            progress=clear_running_fields(progress),
        )
        draft.stalled, draft.requeue_after, draft.requests = None, None, []
    else:
        if draft.stalled is not None:
            draft.update(message=draft.stalled.message[:MESSAGE_LIMIT])
        running = next((s.name for s in draft.status.stages if s.state != "Succeeded"), None)
        if progress is not None and progress.stage != running:
            draft.update(progress=None)
    generation = int(job["metadata"].get("generation") or 0)
    conditions = job_conditions(draft.status, draft.stalled, generation, timestamp)
    draft.update(conditions=conditions, observed_generation=generation)
    return Decision(
        create=tuple(draft.create),
        delete=tuple(draft.delete),
        status=draft.status.to_wire(),
        events=tuple(job_events(before, draft)),
        requests=tuple(draft.requests),
        requeue_after=draft.requeue_after,
    )
