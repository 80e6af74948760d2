"""An attempt that ended badly: note it once, wait, remove what is left of it, launch the next.

Crashes count against maxRestarts and wait longer each time. What others did to the pods is free and
may happen for ever, so attempts are kept apart: one begins no sooner after the one before it began
than a time that doubles with every attempt. Who ran for longer than that goes on at once.
"""

from datetime import datetime, timedelta

from finetune_api.jobstatus import CheckpointStatus
from finetune_api.run import Failure

from finetune_operator.jobs.attempt_children import launch
from finetune_operator.jobs.attempt_outcome import JOB_DELETED, Outcome
from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.messages import retry_text
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.node_exclusion import LIFTED, blamed, to_blame
from finetune_operator.jobs.progress import at_rest, stopped_at
from finetune_operator.jobs.stages.base import PodStage
from finetune_operator.manifest import format_time, object_ref, parse_time

FIRST_DELAY = 10.0
"""Seconds after the first crash."""
LEAST_DELAY = 1.0
LONGEST_DELAY = 300.0
UNSEEN_DELAY = 15.0
"""Seconds after a Job was missed: it may be that it was not seen yet, as another replica that led a
moment ago created it. By then a list has told."""


def noted(draft: Draft, attempt: Attempt) -> bool:
    """Whether the status tells already how this attempt ended: it is over, whatever its pods do."""
    failure = draft.status.failure
    return failure is not None and (failure.stage, failure.attempt) == (
        attempt.stage,
        attempt.number,
    )


def retry(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, over: Outcome) -> None:
    """Bring a failed attempt as far towards the next one as can be now."""
    if not noted(draft, attempt):
        if not note(ctx, draft, stage, attempt, over):
            return
    elif keep_checkpoint(draft, attempt):
        message = retry_text(draft, stage.name, over, ctx.spec.max_restarts)
        draft.update_stage(stage.name, message=message)
    due = parse_time(draft.stage(stage.name).retry_at) or ctx.now
    left = (due - ctx.now).total_seconds()
    if left <= 0 and attempt.job is None:
        launch(ctx, draft, stage, attempt.number + 1)
        return
    draft.update(phase=stage.phase(attempt) if stage.name != "train" else "Queued")
    draft.wake(left if left > 0 else LEAST_DELAY)
    if left <= 0 and attempt.job is not None:
        draft.delete.append(object_ref(attempt.job))
    draft.update(message=draft.stage(stage.name).message or draft.status.message)


def note(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, over: Outcome) -> bool:
    """Write down how an attempt ended; False where that ends the job."""
    failure = over.failure
    assert failure is not None
    keep_checkpoint(draft, attempt)
    if over.kind == "Crashed":
        if draft.status.restarts >= ctx.spec.max_restarts:
            _give_up(draft, stage, failure)
            return False
        draft.update(restarts=draft.status.restarts + 1)
    node = to_blame(attempt, over)
    if failure.reason == LIFTED:
        draft.update(nodes=[])
    elif node is not None:
        draft.update(nodes=blamed(draft.status.nodes, node))
    due = over.at + timedelta(seconds=delay(draft.status.restarts, attempt, over))
    message = retry_text(draft, stage.name, over, ctx.spec.max_restarts)
    draft.update(failure=failure, message=message, progress=at_rest(draft.status.progress))
    draft.update_stage(stage.name, retry_at=format_time(due), message=message)
    return True


def there_after_all(draft: Draft, attempt: Attempt) -> bool:
    """Take back that a Job was deleted, when it is there: it had only not been seen yet."""
    failure = draft.status.failure
    if failure is None or failure.reason != JOB_DELETED or attempt.job is None:
        return False
    draft.update(failure=None)
    draft.update_stage(attempt.stage, retry_at=None)
    return True


def keep_checkpoint(draft: Draft, attempt: Attempt) -> bool:
    """A gang that was told to stop has saved after it last told its progress; whether that is
    news."""
    leader = attempt.leader()
    result = leader.result if leader else None
    facts = result.train if result and result.outcome == "Preempted" else None
    before = draft.status.checkpoint or CheckpointStatus(step=0)
    if facts is None or facts.steps in (0, before.step):
        return False
    draft.update(
        checkpoint=before.model_copy(update={"step": facts.steps}),
        progress=stopped_at(draft.status.progress, facts.steps),
    )
    return True


def delay(restarts: int, attempt: Attempt, over: Outcome) -> float:
    """Seconds from the end of an attempt to the next one."""
    if over.kind == "Crashed":
        return float(min(LONGEST_DELAY, FIRST_DELAY * 2 ** (min(max(1, restarts), 10) - 1)))
    unseen = over.failure is not None and over.failure.reason == JOB_DELETED
    least = UNSEEN_DELAY if unseen else LEAST_DELAY
    apart = min(LONGEST_DELAY, 2.0 ** min(attempt.number - 1, 10))
    return max(least, apart - _lived(attempt, over.at))


def _lived(attempt: Attempt, end: datetime) -> float:
    began = attempt.began()
    return (end - began).total_seconds() if began else 0.0


def _give_up(draft: Draft, stage: PodStage, failure: Failure) -> None:
    restarts = draft.status.restarts
    again = f" (after {restarts} restart{'s' if restarts != 1 else ''})" if restarts else ""
    draft.fail(stage.name, failure.model_copy(update={"message": failure.message + again}))
