"""spec.suspend: stop after a checkpoint, give the devices back, and go on later.

Only the newest attempt of the running stage is stopped, by deleting its Job: its pods are told to
end, training saves at the next step. A stage that ends well meanwhile has ended. The job is
suspended when no pod is left that may still report; a pod on a dead node, which nobody can end, is
named and not waited for. Resuming is the next attempt, at once, whatever the back-off was.
"""

from datetime import datetime

from finetune_api.run import Failure

from finetune_operator.jobs.attempt_children import RECHECK
from finetune_operator.jobs.attempt_outcome import Outcome
from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.messages import at_step, from_where, waits_for
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.retry import keep_checkpoint, note, noted
from finetune_operator.jobs.progress import at_rest, few
from finetune_operator.jobs.stage_runner import accept, current, over_by
from finetune_operator.jobs.stages.base import PodStage
from finetune_operator.manifest import format_time, object_ref, parse_time

SUSPENDED = "Suspended"


def pause_stage(ctx: Context, draft: Draft, stage: PodStage) -> bool:
    """Bring a stage to rest; True when it had ended well and the next one is to be looked at."""
    if draft.stage(stage.name).state == "Succeeded":
        return True
    attempt = current(ctx, draft, stage)
    if attempt is None:
        _rest(ctx, draft, f"suspended before {stage.name}")
        return False
    over = over_by(ctx, draft, stage, attempt)
    if over is not None and over.kind in ("Succeeded", "UserError"):
        return accept(ctx, draft, stage, attempt, over)
    if over is not None:
        keep_checkpoint(draft, attempt)
        if _crashed_by_itself(draft, attempt, over) and not note(ctx, draft, stage, attempt, over):
            return False
    if attempt.job is not None:
        draft.delete.append(object_ref(attempt.job))
    if draft.status.suspended_at is None and _may_run(attempt, ctx.now):
        _stopping(draft, stage, attempt)
        return False
    _stopped(ctx, draft, stage, attempt)
    return False


def pause_serve(ctx: Context, draft: Draft) -> bool:
    """Nothing of the job runs while its model is rolled out; True when it was rolled out."""
    if draft.stage("serve").state == "Succeeded":
        return True
    assert ctx.spec.serve is not None
    _rest(ctx, draft, f"suspended before endpoint {ctx.spec.serve.endpoint} has taken the model")
    return False


def resume(draft: Draft, now: datetime) -> None:
    """Go on: time spent suspended does not count, and nodes get another chance."""
    since = parse_time(draft.status.suspended_at)
    if since is None:
        return
    seconds = draft.status.suspended_seconds
    if draft.status.started_at is not None:
        seconds += max(0, round((now - since).total_seconds()))
    draft.update(suspended_at=None, suspended_seconds=seconds, nodes=[])


def _crashed_by_itself(draft: Draft, attempt: Attempt, over: Outcome) -> bool:
    """A crash that nobody has counted yet, of an attempt that was not told to stop."""
    return over.kind == "Crashed" and attempt.job is not None and not noted(draft, attempt)


def _may_run(attempt: Attempt, now: datetime) -> bool:
    """Whether something of it is there; its pods may not have been seen while its Job lives."""
    return attempt.live or any(not pod.finished and not pod.given_up(now) for pod in attempt.pods)


def _stopping(draft: Draft, stage: PodStage, attempt: Attempt) -> None:
    saves = ", after a checkpoint" if stage.name == "train" else ""
    waits = waits_for(attempt) or _orphans(attempt)
    message = f"{stage.name} is stopping{saves}: suspend was asked for{waits}"
    draft.update(phase=stage.phase(attempt), message=message)
    draft.update_stage(stage.name, message=message)
    draft.wake(RECHECK)


def _orphans(attempt: Attempt) -> str:
    """A person who deleted the Job with --cascade=orphan has to end its pods too."""
    orphans = [pod.name for pod in attempt.pods if pod.orphan and not pod.finished]
    if not orphans:
        return ""
    return f"; its Job was deleted without its pods: kubectl delete pod {' '.join(orphans[:4])}"


def _stopped(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> None:
    """Note that the attempt is over, so that resuming begins the next one and counts nothing."""
    message = f"{stage.name} was suspended{at_step(draft, stage.name)}"
    if not noted(draft, attempt):
        failure = Failure(
            stage=stage.name, reason=SUSPENDED, message=message, attempt=attempt.number
        )
        draft.update(failure=failure)
    text = f"suspended; {stage.name} {from_where(draft, stage.name)}"
    draft.update_stage(stage.name, state="Pending", retry_at=None, message=message)
    _rest(ctx, draft, text + _left_over(attempt, ctx.now))


def _left_over(attempt: Attempt, now: datetime) -> str:
    lost = [pod for pod in attempt.pods if not pod.finished and pod.given_up(now)]
    named = few([f"pod {pod.name} on node {pod.node}" for pod in lost])
    where = "those nodes" if lost[1:] else "that node"
    return f"; {named} cannot be ended, look at {where}" if lost else ""


def _rest(ctx: Context, draft: Draft, message: str) -> None:
    since = draft.status.suspended_at or format_time(ctx.now)
    progress = at_rest(draft.status.progress)
    draft.update(phase=SUSPENDED, suspended_at=since, message=message, progress=progress)
    draft.requeue = None
