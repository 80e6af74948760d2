"""What follows an attempt that failed: another one after a delay, or the end of the job.

Crashes count against maxRestarts, and the delay doubles with each of them. Evictions, preemptions
and lost nodes are free and may repeat indefinitely, so attempts are kept apart: the next one begins
no sooner after the beginning of the last than a time that doubles with every attempt. After an
attempt that ran for longer than that, the next one begins at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.jobstatus import CheckpointStatus, NodeFailures, SuspectedNodes

from finetune_operator.jobs.attempt_outcome import JOB_DELETED, FailedAttempt
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.node_exclusion import LIFTED, count_failure, find_blamed_node
from finetune_operator.jobs.policies.suspect_node import (
    exclude_suspects,
    is_suspected,
    suspect_nodes,
)
from finetune_operator.jobs.policies.waiting_gang import GANG_UNSCHEDULABLE, spread_delay

FIRST_DELAY = 10.0
"""Seconds after the first crash."""
LEAST_DELAY = 1.0
LONGEST_DELAY = 300.0
UNSEEN_DELAY = 15.0
"""Seconds after a Job was found missing: the cache may lack it, as another replica created it a
moment ago while it was the leader. By then the cache has listed the Jobs again."""


@dataclass(frozen=True)
class RetryDecision:
    """The next attempt: when it begins, and what the status counts by then."""

    at: datetime
    restarts: int
    nodes: Sequence[NodeFailures]
    suspected: SuspectedNodes | None = None
    """For status.suspected."""


def decide_retry(
    status: FineTuneJobStatus, max_restarts: int, attempt: Attempt, outcome: FailedAttempt
) -> RetryDecision | Failure:
    """The next attempt after this one, or why the job fails: no restart is left."""
    restarts = status.restarts
    if outcome.kind == "Crashed":
        if restarts >= max_restarts:
            return _add_restarts(outcome.failure, restarts)
        restarts += 1
    nodes: Sequence[NodeFailures] = status.nodes
    suspected = status.suspected
    if outcome.failure.reason == LIFTED:
        nodes = []
    elif is_suspected(outcome):
        pod = outcome.pod
        suspected = suspect_nodes(attempt, outcome.failure, pod.node if pod else None)
        nodes = exclude_suspects(nodes, suspected)
    elif (node := find_blamed_node(attempt, outcome)) is not None:
        nodes = count_failure(nodes, node)
    seconds = delay_seconds(restarts, attempt, outcome)
    return RetryDecision(outcome.at + timedelta(seconds=seconds), restarts, nodes, suspected)


def recorded_failure(status: FineTuneJobStatus, attempt: Attempt) -> Failure | None:
    """The failure by which the status records that this attempt has ended, whatever its pods do."""
    failure = status.failure
    if failure is None or (failure.stage, failure.attempt) != (attempt.stage, attempt.number):
        return None
    return failure


def find_saved_checkpoint(status: FineTuneJobStatus, attempt: Attempt) -> CheckpointStatus | None:
    """The checkpoint that a gang saved on its way out, after its last report of progress; None
    where there is none that the status does not have."""
    leader = attempt.leader()
    result = leader.result if leader else None
    facts = result.train if result and result.outcome == "Preempted" else None
    before = status.checkpoint or CheckpointStatus(step=0)
    if facts is None or facts.steps in (0, before.step):
        return None
    return before.model_copy(update={"step": facts.steps})


def delay_seconds(restarts: int, attempt: Attempt, outcome: FailedAttempt) -> float:
    """Seconds from the end of an attempt to the beginning of the next one."""
    if outcome.kind == "Crashed":
        return float(min(LONGEST_DELAY, FIRST_DELAY * 2 ** (min(max(1, restarts), 10) - 1)))
    if outcome.failure.reason == GANG_UNSCHEDULABLE:
        return LEAST_DELAY + spread_delay(attempt)
    least = UNSEEN_DELAY if outcome.failure.reason == JOB_DELETED else LEAST_DELAY
    apart = min(LONGEST_DELAY, 2.0 ** min(attempt.number - 1, 10))
    began = attempt.began()
    lifetime = (outcome.at - began).total_seconds() if began else 0.0
    return max(least, apart - lifetime)


def _add_restarts(failure: Failure, restarts: int) -> Failure:
    if restarts == 0:
        return failure
    note = f" (after {restarts} restart{'s' if restarts != 1 else ''})"
    return failure.with_message(failure.message + note)
