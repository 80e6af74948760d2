"""activeDeadlineSeconds: how long a job may take in all, but for the time it was suspended."""

from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.run import Failure

from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.progress import duration_text
from finetune_operator.manifest import parse_time


def seconds_left(status: FineTuneJobStatus, deadline: int | None, now: datetime) -> float | None:
    """Until the deadline, negative after it; None where there is none or it does not run."""
    started = parse_time(status.started_at)
    if deadline is None or started is None:
        return None
    return deadline + status.suspended_seconds - (now - started).total_seconds()


def enforce_deadline(ctx: Context, draft: Draft) -> None:
    """Fail a job that is late, or look again when it will be.

    A job that was told to pause is not failed, also while it still saves its work.
    """
    if draft.ended or ctx.spec.suspend:
        return
    left = seconds_left(draft.status, ctx.spec.active_deadline_seconds, ctx.now)
    if left is None:
        return
    if left > 0:
        draft.wake(left)
        return
    draft.create, draft.apply, draft.delete = [], [], []
    stage = next(s.name for s in draft.status.stages if s.state != "Succeeded")
    failure = Failure(
        reason="DeadlineExceeded",
        message=f"the job has not ended {duration_text(ctx.spec.active_deadline_seconds)} "
        "after its start",
        remedy="raise activeDeadlineSeconds in a new FineTuneJob, or ask for fewer steps",
        attempt=draft.stage(stage).attempt or None,
    )
    draft.fail(stage, failure)
