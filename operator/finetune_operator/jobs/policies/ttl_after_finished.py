"""A terminal job: stop what still runs of it, and delete it after its time to live.

It never runs again and its status stays, whatever happens to its children. Children that still run
are deleted in every reconcile, because the operator may have crashed between the status that ended
the job and the deletion; finished Jobs stay for their logs.
"""

from datetime import datetime, timedelta
from typing import Any

from finetune_operator.decision import Decision, Manifest, Settings, View
from finetune_operator.jobs.observe import observe
from finetune_operator.manifest import find_condition, format_time, object_ref, parse_time

NEVER = -1
"""Time to live of a job that stays whatever the default of the installation is."""
LONGEST_SLEEP = 3600.0
"""The clock of a machine may be set, so the operator checks again within this time, in seconds."""


def clean_up_terminal_job(job: Manifest, view: View, settings: Settings, now: datetime) -> Decision:
    """What is left to do for a terminal job."""
    delete = [
        object_ref(attempt.job)
        for attempt in observe(job, view).all_attempts()
        if attempt.job is not None and (attempt.is_live or attempt.has_sidecars_left)
    ]
    expires_at = _find_expiry(job, settings)
    left = None if expires_at is None else (expires_at - now).total_seconds()
    if left is not None and left <= 0:
        delete.append(object_ref(job))
    sleep = None if left is None or left <= 0 else min(left, LONGEST_SLEEP)
    status = _update_status(job, expires_at)
    return Decision(delete=tuple(delete), status=status, requeue_after=sleep)


def _find_expiry(job: Manifest, settings: Settings) -> datetime | None:
    """When the time to live is over, the job's own or else the installation's; None for never."""
    seconds = (job.get("spec") or {}).get("ttlSecondsAfterFinished")
    if seconds is None:
        seconds = settings.default_ttl_seconds_after_finished
    ended = parse_time((job.get("status") or {}).get("finishedAt")) or parse_time(
        find_condition(job, "Succeeded").get("lastTransitionTime")
    )
    if not isinstance(seconds, int) or seconds == NEVER or ended is None:
        return None
    return ended + timedelta(seconds=seconds)


def _update_status(job: Manifest, expires_at: datetime | None) -> dict[str, Any] | None:
    """The status with the current generation, which shows that a change of the time to live was
    read, and with the time of the removal; None where it has both."""
    generation = int(job["metadata"].get("generation") or 0)
    status = job.get("status") or {}
    removal = None if expires_at is None else format_time(expires_at)
    if (status.get("observedGeneration"), status.get("expiresAt")) == (generation, removal):
        return None
    conditions = [{**c, "observedGeneration": generation} for c in status.get("conditions") or ()]
    changes = {"observedGeneration": generation, "conditions": conditions, "expiresAt": removal}
    return {**status, **changes}
