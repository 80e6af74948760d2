"""Which node is to blame for a failed attempt, and which nodes the next attempts avoid.

A node is blamed where it was lost, where a rank on it hung, or where the pod that was the cause
crashed in a way that hardware or a node's software can cause. From the second time on, the node is
excluded. A job never waits indefinitely because of that: where no other node has free capacity, the
exclusion is lifted, and counting starts again.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.failure import Failure
from finetune_api.jobstatus import NodeFailures

from finetune_operator.jobs.attempt_outcome import REFUSED, FailedAttempt, fail_attempt
from finetune_operator.jobs.observe import Attempt, Observed
from finetune_operator.jobs.policies.waiting_gang import has_other_pods
from finetune_operator.jobs.progress import join_few

EXCLUDED_FROM = 2
"""Failures on a node from which on it is avoided."""
MOST_NODES = 64
"""Nodes that the status can hold."""
RANK_STALLED = "RankStalled"
LIFTED = "ExclusionLifted"
NODE_REASONS = frozenset({"Crashed", "RankFailed", "NoDevice", "InternalError", REFUSED})
"""Reasons of crashes that a node can cause. Memory, disk, data, peers and names are not its own."""
_ON_HOST = re.compile(r"on host ([a-z0-9.-]*[a-z0-9])")


def find_blamed_node(attempt: Attempt, outcome: FailedAttempt) -> str | None:
    """The node because of which the attempt ended; None where it was none, or it is not known."""
    pod = outcome.pod
    if outcome.kind == "Disrupted":
        return pod.node if pod and pod.disruption and pod.disruption.is_node_lost else None
    if outcome.kind != "Crashed":
        return None
    if outcome.failure.reason == RANK_STALLED:
        return find_node_of_host(attempt, outcome.failure.message)
    return pod.node if pod and outcome.failure.reason in NODE_REASONS else None


def count_failure(
    nodes: Sequence[NodeFailures], name: str, excluded_from: int = EXCLUDED_FROM
) -> list[NodeFailures]:
    """The list with one more failure of a node; where it is full, the node with the fewest failures
    is dropped. A node that is excluded stays so."""
    old = next((node for node in nodes if node.name == name), None)
    count = old.failures + 1 if old else 1
    is_excluded = count >= excluded_from or (old is not None and old.excluded)
    new = NodeFailures(name=name, failures=count, excluded=is_excluded)
    others = sorted((n for n in nodes if n.name != name), key=lambda n: -n.failures)
    return sorted([*others[: MOST_NODES - 1], new], key=lambda node: node.name)


def list_excluded_nodes(nodes: Sequence[NodeFailures]) -> list[str]:
    """The names of the nodes that the next attempts avoid."""
    return [node.name for node in nodes if node.excluded]


def check_exclusion(
    observed: Observed,
    attempt: Attempt,
    nodes: Sequence[NodeFailures],
    patience: timedelta,
    now: datetime,
) -> FailedAttempt | None:
    """The end of an attempt for which the scheduler finds no node apart from those excluded, also
    in the time that an autoscaler takes to add one.

    Not while pods of an earlier attempt are still ending: they may be what takes the capacity.
    """
    avoided = list_excluded_nodes(nodes)
    waiting = [p.unscheduled_since for p in attempt.pods if p.unscheduled_since and not p.has_ended]
    if not avoided or not waiting or now - min(waiting) < patience:
        return None
    if has_other_pods(observed, attempt, now):
        return None
    failure = Failure(
        reason=LIFTED,
        message=(
            f"no free capacity for {attempt.stage} for {patience.total_seconds() / 60:g} minutes "
            f"without {join_few(avoided)}, which may be used again"
        ),
    )
    return fail_attempt(attempt, "Disrupted", now, failure)


def find_node_of_host(attempt: Attempt, message: str) -> str | None:
    """The node of the host that a message names; with several hosts no single node is to blame."""
    hosts = set(_ON_HOST.findall(message))
    nodes = {pod.node for pod in attempt.pods if pod.host in hosts and pod.node}
    return nodes.pop() if len(nodes) == 1 and len(hosts) == 1 else None
