"""Failures that a broken device can cause as well as the job: tried once more on another node.

A GPU with a bad memory cell computes NaN, and one whose memory another process holds runs out of
it. Both look like an error of the user. So the first such failure of a job counts as a restart and
its node is excluded at once; the second one, wherever it happens, is the user's. Of a large gang
no node is excluded unless the failure names it: few clusters have as many others.
"""

from collections.abc import Sequence
from dataclasses import replace

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.jobstatus import NodeFailures, SuspectedNodes

from finetune_operator.jobs.attempt_outcome import DEVICE_STAGES, FailedAttempt
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.node_exclusion import count_failure, find_node_of_host
from finetune_operator.jobs.progress import join_few

SUSPECT_REASONS = frozenset({"LossNotFinite", "OutOfMemory"})
MOST_NAMES = 16
"""Nodes that a single failure excludes at most."""


def crash_if_suspected(
    status: FineTuneJobStatus, attempt: Attempt, outcome: FailedAttempt
) -> FailedAttempt:
    """The outcome as a crash where the node is suspected, or with what was tried before."""
    if outcome.kind != "UserError" or outcome.failure.reason not in SUSPECT_REASONS:
        return outcome
    if attempt.stage not in DEVICE_STAGES:
        return outcome
    before = status.suspected
    if before is None or (before.stage, before.attempt) == (attempt.stage, attempt.number):
        return replace(outcome, kind="Crashed")
    failure = outcome.failure.with_message(_with_history(outcome, before))
    return replace(outcome, failure=failure)


def is_suspected(outcome: FailedAttempt) -> bool:
    """Whether `crash_if_suspected` has made a crash of an error of the user."""
    return outcome.kind == "Crashed" and outcome.failure.reason in SUSPECT_REASONS


def suspect_nodes(attempt: Attempt, failure: Failure, node: str | None) -> SuspectedNodes:
    """The node whose pod failed or that the message names; where ranks on several nodes computed
    together and none is named, all of them, or none where they are more than MOST_NAMES."""
    named = find_node_of_host(attempt, failure.message)
    everywhere = sorted({pod.node for pod in attempt.pods if pod.node})
    together = everywhere if len(everywhere) <= MOST_NAMES else []
    own = [node] if node and failure.reason == "OutOfMemory" else together
    return SuspectedNodes(
        stage=attempt.stage,
        attempt=attempt.number,
        reason=failure.reason,
        nodes=[named] if named else own,
    )


def exclude_suspects(
    nodes: Sequence[NodeFailures], suspected: SuspectedNodes
) -> Sequence[NodeFailures]:
    """The list with these nodes excluded."""
    for name in suspected.nodes:
        nodes = count_failure(nodes, name, excluded_from=1)
    return nodes


def _with_history(outcome: FailedAttempt, before: SuspectedNodes) -> str:
    where = f" on {join_few(before.nodes)}" if before.nodes else ""
    text = outcome.failure.message.rstrip(".")
    return f"{text}; {before.stage} attempt {before.attempt} ended with {before.reason}{where}"
