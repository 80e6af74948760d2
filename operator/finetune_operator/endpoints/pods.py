"""What the pods of a revision report: ready, waiting for something, or crashing.

A revision waits without a limit for what its pods lack (a node, an image, a claim), because they
start by themselves when the user provides it. A crash loop does not end by itself: after three
restarts of the server the revision has failed, and the reason is the last error of its log.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.decision import Manifest
from finetune_operator.endpoints.failure import RevisionFailure
from finetune_operator.manifest import IMAGE_REASONS, find_condition, parse_time, read_reason
from finetune_operator.resources import deployment, servingruntime
from finetune_operator.resources.resource_requirements import MORE_POOL_MEMORY
from finetune_operator.stalled import Stalled, choose_stall

MAX_RESTARTS = 3
SERVERS = (deployment.CONTAINER, servingruntime.CONTAINER)
"""Containers that serve; a service mesh or an agent may have added others to the pod."""
KSERVE_LOADER = "storage-initializer"
"""The init container by which KServe copies the model."""
WAITING_REASONS = IMAGE_REASONS | {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
}
"""Reasons of a waiting container that does not start by itself."""
ERROR_LINE = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception): .+")
GENERIC_ERROR = "Engine core initialization failed"
"""vLLM exits with this error; its cause is further up in the log."""


def is_ready(pod: Manifest) -> bool:
    return find_condition(pod, "Ready").get("status") == "True" and bool(
        pod.get("status", {}).get("podIP")
    )


def select_ready(pods: Sequence[Manifest]) -> list[Manifest]:
    return [pod for pod in pods if is_ready(pod)]


def find_ready_time(pods: Sequence[Manifest]) -> datetime | None:
    """When the last of the ready pods became ready."""
    times = [
        parse_time(find_condition(pod, "Ready").get("lastTransitionTime"))
        for pod in select_ready(pods)
    ]
    return max((each for each in times if each), default=None)


def find_start_time(pods: Sequence[Manifest]) -> datetime | None:
    """When the first server that runs now was started."""
    times = [
        parse_time(each.get("state", {}).get("running", {}).get("startedAt"))
        for _, each in _list_containers(pods)
        if each.get("name") in SERVERS
    ]
    return min((each for each in times if each), default=None)


def count_restarts(pod: Manifest) -> int:
    """How often the kubelet restarted the server of this pod."""
    containers = (each for _, each in _list_containers([pod]) if each.get("name") in SERVERS)
    return sum(each.get("restartCount", 0) for each in containers)


def find_crash(pods: Sequence[Manifest]) -> RevisionFailure | None:
    """Why a server or its loader crashes, once it has crashed MAX_RESTARTS times."""
    for pod, each in _list_containers(pods):
        is_own = each.get("name") in (*SERVERS, KSERVE_LOADER)
        if is_own and each.get("restartCount", 0) >= MAX_RESTARTS:
            return _describe_crash(pod, each)
    return None


def find_stall(pods: Sequence[Manifest], patience: timedelta, now: datetime) -> Stalled | None:
    """What a pod of the revision waits for; a node is expected for as long as `patience`, and what
    is expected is reported last."""
    return choose_stall(
        [
            *(_find_scheduling_stall(pod, patience, now) for pod in pods),
            *(_find_container_stall(pod, each) for pod, each in _list_containers(pods)),
        ]
    )


def shorten(text: str, length: int = 300) -> str:
    """The text as one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def find_last_error(log: str) -> str:
    """The most specific line of a log: the last error that is not GENERIC_ERROR, else the last
    error, else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [match[0] for line in lines if (match := ERROR_LINE.search(line))]
    specific = [each for each in errors if GENERIC_ERROR not in each]
    return shorten((specific or errors or lines or [""])[-1])


def _describe_crash(pod: Manifest, container: dict[str, Any]) -> RevisionFailure:
    count = container.get("restartCount", 0)
    last = container.get("lastState", {}).get("terminated", {})
    last = last or container.get("state", {}).get("terminated", {})
    reason = read_reason(last.get("reason"), "Error")
    text = (
        f"container {container.get('name')} of pod {pod['metadata']['name']} ended {count} times, "
        f"last with {reason} (exit code {last.get('exitCode', 'unknown')})"
    )
    is_oom = reason == "OOMKilled"
    detail = find_last_error(last.get("message", ""))
    if is_oom:
        detail = MORE_POOL_MEMORY
    return RevisionFailure(
        reason="OOMKilled" if is_oom else "CrashLoop",
        message=f"{text}: {detail}" if detail else text,
    )


def _find_scheduling_stall(pod: Manifest, patience: timedelta, now: datetime) -> Stalled | None:
    condition = find_condition(pod, "PodScheduled")
    if condition.get("status") != "False":
        return None
    message = condition.get("message", "")
    missing = re.search(r'persistentvolumeclaim "([^"]+)" not found', message)
    if missing:
        return Stalled("ClaimNotFound", f"PersistentVolumeClaim {missing[1]!r} does not exist")
    text = f"pod {pod['metadata']['name']} cannot be scheduled: {shorten(message)}"
    since = parse_time(condition.get("lastTransitionTime"))
    until = None
    if since is not None and now - since < patience:
        until = min(since, now) + patience
    return Stalled(read_reason(condition.get("reason"), "Unschedulable"), text, until)


def _find_container_stall(pod: Manifest, container: dict[str, Any]) -> Stalled | None:
    waiting = container.get("state", {}).get("waiting", {})
    reason = waiting.get("reason", "")
    if reason == "CrashLoopBackOff":
        return Stalled(reason, _describe_crash(pod, container).message)
    if reason not in WAITING_REASONS:
        return None
    text = f"pod {pod['metadata']['name']}: {reason}: {shorten(waiting.get('message', ''))}"
    return Stalled(reason, text)


def _list_containers(pods: Sequence[Manifest]) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    for pod in pods:
        status = pod.get("status", {})
        for each in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
            yield pod, each
