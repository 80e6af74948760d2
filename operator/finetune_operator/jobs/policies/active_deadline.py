"""activeDeadlineSeconds: how long a job may take in all, without the time it was suspended."""

from datetime import datetime

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus

from finetune_operator.jobs.progress import format_duration
from finetune_operator.manifest import parse_time


def check_deadline(
    status: FineTuneJobStatus, deadline: int, now: datetime
) -> float | Failure | None:
    """Seconds until the deadline; DeadlineExceeded after it; None before the job starts."""
    started = parse_time(status.started_at)
    if started is None:
        return None
    left = deadline + status.suspended_seconds - (now - started).total_seconds()
    if left > 0:
        return left
    stage = next(stage for stage in status.stages if stage.state != "Succeeded")
    return Failure(
        stage=stage.name,
        reason="DeadlineExceeded",
        message=f"the job has not ended {format_duration(deadline)} after its start",
        remedy="raise activeDeadlineSeconds in a new FineTuneJob, or ask for fewer steps",
        attempt=stage.attempt or None,
    )
