"""A stage as a row of attempts: launch, watch, accept, or try again."""

from datetime import datetime

from finetune_api.run import Failure

from finetune_operator.jobs.attempt_children import RECHECK, launch, restore
from finetune_operator.jobs.attempt_outcome import Outcome, ending
from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.messages import starting, waits_for
from finetune_operator.jobs.observe import Attempt, PodFacts
from finetune_operator.jobs.policies.node_exclusion import nowhere_else
from finetune_operator.jobs.policies.retry import noted, retry, there_after_all
from finetune_operator.jobs.policies.stalled_rank import silence
from finetune_operator.jobs.progress import (
    ask_id,
    checkpoint_told,
    progress_ask,
    read_progress,
    shown,
    told,
    waiting_to_train,
)
from finetune_operator.jobs.stages.base import PodStage
from finetune_operator.jobs.stages.prepare import user_claims
from finetune_operator.jobs.stall_checks import attempt_stall
from finetune_operator.manifest import format_time, object_ref


def run_stage(ctx: Context, draft: Draft, stage: PodStage) -> bool:
    """Bring a stage as far as it can go now; True when it is done."""
    if draft.stage(stage.name).state == "Succeeded":
        return True
    attempt = current(ctx, draft, stage)
    if attempt is None:
        launch(ctx, draft, stage, 1)
        return False
    over = over_by(ctx, draft, stage, attempt) or watch(ctx, draft, stage, attempt)
    if over is None:
        return False
    if over.kind in ("Succeeded", "UserError"):
        return accept(ctx, draft, stage, attempt, over)
    retry(ctx, draft, stage, attempt, over)
    return False


def current(ctx: Context, draft: Draft, stage: PodStage) -> Attempt | None:
    """The newest attempt that has begun, noted in the status; Jobs of older ones are removed."""
    state = draft.stage(stage.name)
    newest = ctx.observed.newest(stage.name)
    seen = max(state.attempt, newest.number if newest else 0)
    if seen == 0:
        return None
    started = state.started_at or format_time(ctx.now)
    draft.update_stage(stage.name, state="Running", attempt=seen, started_at=started)
    draft.update(started_at=draft.status.started_at or started)
    for older in ctx.observed.attempts.get(stage.name, ()):
        if older.number < seen and older.job is not None:
            draft.delete.append(object_ref(older.job))
    attempt = ctx.observed.numbered(stage.name, seen)
    if attempt.config is not None:
        draft.update(plan=draft.status.plan or attempt.config.plan)
    return attempt


def over_by(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> Outcome | None:
    """How an attempt ended: by its pods, or as the status says of one that was given up."""
    found = ending(attempt, ctx.now)
    if found is not None and found.kind == "Succeeded":
        return _complete(ctx, draft, stage, attempt, found)
    if found is not None or not noted(draft, attempt):
        return found
    if there_after_all(draft, attempt):
        return None
    return Outcome("Disrupted", ctx.now, None, draft.status.failure)


def _complete(
    ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, over: Outcome
) -> Outcome:
    """A result without its facts is none."""
    assert over.result is not None
    if stage.accept(ctx, draft.status, over.result) is not None:
        return over
    failure = Failure(
        stage=stage.name,
        reason="NoResult",
        message=f"{stage.name} ended without the facts that the next stage needs",
        attempt=attempt.number,
    )
    return Outcome("Crashed", over.at, None, failure)


def accept(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, over: Outcome) -> bool:
    """Take over how a stage ended for good; True when the next one may begin."""
    if over.kind == "UserError":
        _refuse(ctx, draft, stage, over)
        return False
    return _succeed(ctx, draft, stage, attempt, over)


def watch(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> Outcome | None:
    """Tell what the running attempt does or waits for; how it ends where it must be given up."""
    draft.wake(RECHECK)
    draft.update(phase=stage.phase(attempt))
    claims = [ctx.settings.workspace_claim]
    if stage.name == "prepare":
        claims += user_claims(ctx.spec, ctx.settings.workspace_claim)
    draft.stall = attempt_stall(attempt, ctx.view, ctx.namespace, claims, ctx.now)
    restore(ctx, draft, stage, attempt)
    plan, progress = draft.status.plan, draft.status.progress
    if stage.name == "train" and plan and not (progress and progress.stage == "train"):
        draft.update(progress=waiting_to_train(plan))
    leader = attempt.leader()
    draft.update(message=_waiting(draft, attempt))
    over = nowhere_else(ctx.observed, attempt, draft.status.nodes, ctx.now)
    if leader is not None and leader.phase == "Running":
        over = _listen(ctx, draft, stage, attempt, leader) or over
    draft.update_stage(stage.name, message=draft.status.message)
    if over is not None:
        draft.stall = None
    return over


def _waiting(draft: Draft, attempt: Attempt) -> str:
    if attempt.suspended and not attempt.pods:
        return f"{attempt.stage} waits: its Job is suspended, as by a queue that has no room yet"
    running = sum(pod.phase == "Running" for pod in attempt.pods)
    if any(pod.deadline is not None for pod in attempt.pods):
        return f"{attempt.stage} is stopping{waits_for(attempt)}"
    if running == attempt.nodes:
        plan = attempt.config.plan if attempt.config and attempt.stage == "train" else None
        where = f" on {plan.nodes} x {plan.gpus_per_node} {plan.device}" if plan else ""
        return f"{attempt.stage} is running{where}" + (f" with {plan.strategy}" if plan else "")
    if ended := sum(pod.finished for pod in attempt.pods):
        return f"{attempt.stage} is ending: {ended} of {attempt.nodes} pods have ended"
    waiting = sorted({pod.waiting_reason for pod in attempt.pods if pod.waiting_reason})
    why = f" ({', '.join(waiting)})" if waiting else ""
    begins = starting(draft, attempt.stage, attempt.number)
    return f"{begins}: {running} of {attempt.nodes} pods run{why}"


def pace(base: float, started: datetime | None, now: datetime) -> float:
    """Seconds between two looks at a stage: a sixtieth of its age, between `base` and 30 s.

    Every look may cost a status write, and who waits for hours does not wait for seconds.
    """
    age = (now - started).total_seconds() if started else 0.0
    return max(base, min(30.0, age / 60))


def _listen(
    ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, leader: PodFacts
) -> Outcome | None:
    """Ask the leader for its progress and show the newest answer; an end where a rank is silent
    for too long."""
    if leader.ip is None:
        return None
    interval = pace(ctx.settings.progress_interval, attempt.job_created(), ctx.now)
    draft.requests.append(progress_ask(leader.uid, leader.ip, interval))
    draft.wake(interval)
    answer = ctx.view.http_response(ask_id(leader.uid))
    progress = read_progress(answer, stage.name, attempt.number)
    if progress is None:
        return None
    told_now = shown(progress, draft.status.progress, ctx.now)
    checkpoint = checkpoint_told(progress, draft.status.checkpoint)
    draft.update(progress=told_now, checkpoint=checkpoint)
    if message := told(progress):
        draft.update(message=message)
    return silence(attempt, progress, told_now.stalled_since, ctx.now)


def _succeed(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, over: Outcome) -> bool:
    """Take the result over."""
    assert over.result is not None
    accepted = stage.accept(ctx, draft.status, over.result)
    assert accepted is not None  # over_by has looked
    draft.status = accepted.status
    draft.update(failure=None, message=accepted.message)
    draft.update_stage(
        stage.name,
        state="Succeeded",
        finished_at=format_time(over.at),
        retry_at=None,
        message=accepted.message,
    )
    if accepted.refusal is None:
        return True
    draft.fail(stage.name, accepted.refusal.model_copy(update={"attempt": attempt.number}))
    return False


def _refuse(ctx: Context, draft: Draft, stage: PodStage, over: Outcome) -> None:
    """End the job; figures that came with the failure stay in the status."""
    if over.result is not None:
        accepted = stage.accept(ctx, draft.status, over.result)
        if accepted is not None:
            draft.status = accepted.status
    assert over.failure is not None
    draft.fail(stage.name, over.failure)
    draft.update_stage(stage.name, finished_at=format_time(over.at))
