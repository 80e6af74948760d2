"""Which node is to blame for a failed attempt, and which ones the next attempts avoid.

A node is blamed where it went away, where a rank on it hung, or where the pod that was the cause
crashed in a way that hardware or a node's software can cause. Twice is no accident: the node is
left out. But a job never waits for ever because of that: where nothing else has room, the
exclusion is lifted, and counting begins anew.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.jobstatus import NodeFailures
from finetune_api.run import Failure

from finetune_operator.jobs.attempt_outcome import REFUSED, Outcome, ended_by_us
from finetune_operator.jobs.observe import Attempt, Observed
from finetune_operator.jobs.progress import few

EXCLUDED_FROM = 2
"""Failures on a node from which on it is avoided."""
PATIENCE = timedelta(minutes=2)
"""Time that an attempt may look for other nodes than those that are left out."""
MOST_NODES = 64
"""As many as the status has room for."""
RANK_STALLED = "RankStalled"
LIFTED = "ExclusionLifted"
NODE_REASONS = frozenset({"Crashed", "RankFailed", "NoDevice", "InternalError", REFUSED})
"""Reasons of crashes that a node can cause. Memory, disk, data, peers and names are not its own."""
_ON_HOST = re.compile(r"on host ([a-z0-9.-]*[a-z0-9])")


def to_blame(attempt: Attempt, over: Outcome) -> str | None:
    """The node because of which the attempt ended; None where it was none, or nobody can tell."""
    pod, failure = over.pod, over.failure
    if failure is None:
        return None
    if over.kind == "Disrupted":
        return pod.node if pod and pod.disruption and pod.disruption.node_lost else None
    if over.kind != "Crashed":
        return None
    if failure.reason == RANK_STALLED:
        return _node_of(attempt, failure.message)
    return pod.node if pod and failure.reason in NODE_REASONS else None


def blamed(nodes: Sequence[NodeFailures], name: str) -> list[NodeFailures]:
    """The list with one more failure of a node; who failed least goes where there is no room."""
    count = next((node.failures for node in nodes if node.name == name), 0) + 1
    new = NodeFailures(name=name, failures=count, excluded=count >= EXCLUDED_FROM)
    others = sorted((n for n in nodes if n.name != name), key=lambda n: -n.failures)
    return sorted([*others[: MOST_NODES - 1], new], key=lambda node: node.name)


def excluded(nodes: Sequence[NodeFailures]) -> tuple[str, ...]:
    """The nodes that the next attempt avoids."""
    return tuple(node.name for node in nodes if node.excluded)


def nowhere_else(
    observed: Observed, attempt: Attempt, nodes: Sequence[NodeFailures], now: datetime
) -> Outcome | None:
    """The end of an attempt that finds no room without the nodes that are left out.

    Not while pods of an attempt before it still end: they may be what takes the room.
    """
    avoided = excluded(nodes)
    waiting = [p.unscheduled_since for p in attempt.pods if p.unscheduled_since and not p.finished]
    if not avoided or not waiting or now < min(waiting) + PATIENCE:
        return None
    others = [p for each in observed.every() if each is not attempt for p in each.pods]
    if any(not pod.finished and not pod.given_up(now) for pod in others):
        return None
    failure = Failure(
        reason=LIFTED,
        message=(
            f"no room for {attempt.stage} for {PATIENCE.seconds // 60} minutes without "
            f"{few(avoided)}, which may be used again"
        ),
    )
    return ended_by_us(attempt, now, failure, "Disrupted")


def _node_of(attempt: Attempt, message: str) -> str | None:
    """The node of the host that a message names; several hosts are nobody's fault in particular."""
    hosts = set(_ON_HOST.findall(message))
    nodes = {pod.node for pod in attempt.pods if pod.host in hosts and pod.node}
    return nodes.pop() if len(nodes) == 1 and len(hosts) == 1 else None
