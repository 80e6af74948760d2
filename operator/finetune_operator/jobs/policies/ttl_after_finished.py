"""A terminal job: stop what still runs of it, and delete it after its time to live.

It never runs again and its status stays, whatever happens to its children. Children that still run
are deleted in every reconcile, because the operator may have crashed between the status that ended
the job and the deletion; finished Jobs stay for their logs.
"""

from datetime import datetime, timedelta
from typing import Any

from finetune_operator.decision import Decision, Manifest, View
from finetune_operator.jobs.observe import observe
from finetune_operator.manifest import find_condition, object_ref, parse_time

LONGEST_SLEEP = 3600.0
"""The clock of a machine may be set, so the operator checks again within this time, in seconds."""


def clean_up_terminal_job(job: Manifest, view: View, now: datetime) -> Decision:
    """What is left to do for a terminal job."""
    delete = [
        object_ref(attempt.job)
        for attempt in observe(job, view).all_attempts()
        if attempt.job is not None and (attempt.is_live or attempt.has_sidecars_left)
    ]
    left = _seconds_to_live(job, now)
    if left is not None and left <= 0:
        delete.append(object_ref(job))
    sleep = None if left is None or left <= 0 else min(left, LONGEST_SLEEP)
    return Decision(delete=tuple(delete), status=_observe_generation(job), requeue_after=sleep)


def _seconds_to_live(job: Manifest, now: datetime) -> float | None:
    """Until ttlSecondsAfterFinished is over; None where it is not set."""
    seconds = (job.get("spec") or {}).get("ttlSecondsAfterFinished")
    ended = parse_time((job.get("status") or {}).get("finishedAt")) or parse_time(
        find_condition(job, "Succeeded").get("lastTransitionTime")
    )
    if not isinstance(seconds, int) or ended is None:
        return None
    return (ended + timedelta(seconds=seconds) - now).total_seconds()


def _observe_generation(job: Manifest) -> dict[str, Any] | None:
    """The status with the current generation, which shows that a change of the time to live was
    read; None where it has it."""
    generation = int(job["metadata"].get("generation") or 0)
    status = job.get("status") or {}
    if status.get("observedGeneration") == generation:
        return None
    conditions = [{**c, "observedGeneration": generation} for c in status.get("conditions") or ()]
    return {**status, "observedGeneration": generation, "conditions": conditions}
