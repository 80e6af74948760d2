"""How a pod ended, from its raw status.

Nothing that a pod wrote is trusted: a termination message that is not a StageResult is no result,
and a time that cannot be parsed is no time.
"""

import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.stage_result import StageResult
from pydantic import ValidationError

from finetune_operator.decision import Manifest
from finetune_operator.manifest import (
    find_condition,
    has_pod_ended,
    parse_time,
    read_reason,
    read_text,
)
from finetune_operator.resources.pod import CONTAINER

DISRUPTION_REASONS = frozenset({"Evicted", "NodeShutdown", "Terminated", "NodeLost", "Preempting"})
"""status.reason of pods that the kubelet or the node ended, where no condition says so."""
LOST_TRACK = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Reasons of a container whose end the kubelet did not see: its node, or the container runtime,
restarted meanwhile."""
_OVER_ITS_LIMIT = re.compile(r"exceed(s|ed) (the|its) .*limit", re.IGNORECASE)
"""In the kubelet's message when it evicts a pod for what the pod itself has used."""


@dataclass(frozen=True)
class Disruption:
    """A component outside the job ended a pod."""

    reason: str
    message: str
    at: datetime | None
    is_ready: bool = False
    """Whether the pod is still Ready; the node lifecycle controller sets pods of a lost node to not
    ready."""

    @property
    def is_node_lost(self) -> bool:
        """Whether the pod will never report its end, because its node is gone.

        A taint may also evict pods of a node that still runs, as one that a cloud reclaims.
        """
        return self.reason == "DeletionByTaintManager" and not self.is_ready

    @property
    def is_own_doing(self) -> bool:
        """Whether the pod was ended for using more than its own limits, and would be again."""
        return _OVER_ITS_LIMIT.search(self.message) is not None


def container_state(pod: Manifest) -> dict[str, Any]:
    """The state of the trainer's container: a policy of the cluster may have added others."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    ours: dict[str, Any] = next((each for each in statuses if each.get("name") == CONTAINER), {})
    return ours.get("state") or {}


def has_sidecar_left(pod: Manifest) -> bool:
    """Whether other containers of the pod run on, or wait for their image, after the trainer's has
    ended.

    Not where all have ended, or only native sidecars are left: the kubelet reports the final phase
    a moment later, and only then why it ended the pod.
    """
    status = pod.get("status") or {}
    if has_pod_ended(pod) or not container_state(pod).get("terminated"):
        return False
    states = (each.get("state") or {} for each in status.get("containerStatuses") or ())
    return any(not state.get("terminated") for state in states)


def read_phase(pod: Manifest) -> str:
    """The phase of the pod as far as the stage is concerned.

    A sidecar that a policy of the cluster has added may be left after the trainer's container,
    which is never restarted; the kubelet then reports Running or Pending indefinitely.
    """
    if has_sidecar_left(pod):
        return "Failed" if container_state(pod)["terminated"].get("exitCode") else "Succeeded"
    return str((pod.get("status") or {}).get("phase") or "Pending")


def find_disruption(pod: Manifest) -> Disruption | None:
    """The component that ended the pod, where it was not the pod itself."""
    status = pod.get("status") or {}
    target = find_condition(pod, "DisruptionTarget")
    if target.get("status") == "True":
        at = parse_time(target.get("lastTransitionTime"))
        # A pod that never ran, as its image is still being pulled, has no readiness to lose.
        is_pending = status.get("phase") == "Pending"
        ready = is_pending or find_condition(pod, "Ready").get("status") == "True"
        reason = read_reason(target.get("reason"), "Disrupted")
        return Disruption(reason, read_text(target.get("message")), at, ready)
    if status.get("phase") == "Failed" and status.get("reason") in DISRUPTION_REASONS:
        return Disruption(status["reason"], read_text(status.get("message")), None)
    terminated = container_state(pod).get("terminated") or {}
    if read_phase(pod) == "Failed" and terminated.get("reason") in LOST_TRACK:
        at = parse_time(terminated.get("finishedAt"))
        return Disruption("NodeRestarted", "its node restarted", at)
    return None


def find_refusal(pod: Manifest) -> str:
    """Why the kubelet did not run the pod, in its own words; empty where it ran it."""
    status = pod.get("status") or {}
    if status.get("phase") != "Failed" or container_state(pod).get("terminated"):
        return ""
    parts = (status.get("reason"), status.get("message"))
    return read_text(": ".join(str(part) for part in parts if part))


def parse_result(message: object) -> StageResult | None:
    """The StageResult in a termination message; None where it is anything else."""
    if not isinstance(message, str):
        return None
    try:
        found = StageResult.model_validate_json(message)
    except ValidationError:
        return None
    return found if _is_storable(found.model_dump()) else None


def _is_storable(value: object) -> bool:
    """Whether a status can hold every number in it; a model's config may contain any number."""
    if isinstance(value, dict | list):
        return all(map(_is_storable, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < 2**63
