"""What the pods of a revision tell: ready, stuck on something, or crashing.

Stuck (no node, no image, no claim) is waited for, however long: it ends by itself when somebody
provides what is missing. Crashing is not: after three ends of the same container the revision
has failed, and the last words of its log are the reason.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from finetune_operator.decision import Manifest
from finetune_operator.manifest import find_condition, parse_time
from finetune_operator.stalled import Stalled

MAX_CRASHES = 3
STUCK = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
}
ERROR_LINE = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception): .+")
EMPTY_ERROR = "Engine core initialization failed"
"""vLLM ends with this one; the cause stands above it."""


def is_ready(pod: Manifest) -> bool:
    """Whether the pod takes traffic."""
    return find_condition(pod, "Ready").get("status") == "True" and bool(
        pod.get("status", {}).get("podIP")
    )


def ready(pods: Sequence[Manifest]) -> list[Manifest]:
    """The pods that take traffic."""
    return [pod for pod in pods if is_ready(pod)]


def ready_since(pods: Sequence[Manifest]) -> datetime | None:
    """When the last of the ready pods became ready."""
    moments = [
        parse_time(find_condition(pod, "Ready").get("lastTransitionTime")) for pod in ready(pods)
    ]
    return max((each for each in moments if each), default=None)


def running_since(pods: Sequence[Manifest]) -> datetime | None:
    """When the first container that runs now was started."""
    moments = [
        parse_time(each.get("state", {}).get("running", {}).get("startedAt"))
        for _, each in _containers(pods)
    ]
    return min((each for each in moments if each), default=None)


def restarts(pod: Manifest) -> int:
    """How often a container of this pod was started again."""
    return sum(each.get("restartCount", 0) for _, each in _containers([pod]))


def crashed(pods: Sequence[Manifest]) -> Stalled | None:
    """Why a container of the revision ended again and again, once that is certain."""
    for pod, each in _containers(pods):
        if each.get("restartCount", 0) >= MAX_CRASHES:
            return _crash(pod, each)
    return None


def obstacle(pods: Sequence[Manifest]) -> Stalled | None:
    """What a pod of the revision waits for."""
    for pod in pods:
        found = _unschedulable(pod)
        if found:
            return found
    for pod, each in _containers(pods):
        waiting = each.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        if reason == "CrashLoopBackOff":
            return Stalled(reason, _crash(pod, each).message)
        if reason in STUCK:
            text = f"pod {pod['metadata']['name']}: {reason}: {shorten(waiting.get('message', ''))}"
            return Stalled(reason, text)
    return None


def shorten(text: str, length: int = 300) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def last_words(log: str) -> str:
    """The line of a log's end that tells most: the last error that has a text of its own."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [match[0] for line in lines if (match := ERROR_LINE.search(line))]
    telling = [each for each in errors if EMPTY_ERROR not in each]
    return shorten((telling or errors or lines or [""])[-1])


def _crash(pod: Manifest, container: dict[str, Any]) -> Stalled:
    count = container.get("restartCount", 0)
    last = container.get("lastState", {}).get("terminated", {})
    last = last or container.get("state", {}).get("terminated", {})
    reason = last.get("reason", "Error")
    text = (
        f"container {container.get('name')} of pod {pod['metadata']['name']} ended {count} times, "
        f"last with {reason} (exit code {last.get('exitCode', 'unknown')})"
    )
    words = last_words(last.get("message", ""))
    if reason == "OOMKilled":
        words = "give the AcceleratorProfile more hostMemoryPerDevice"
    return Stalled(
        "OOMKilled" if reason == "OOMKilled" else "CrashLoop", f"{text}: {words}" if words else text
    )


def _unschedulable(pod: Manifest) -> Stalled | None:
    condition = find_condition(pod, "PodScheduled")
    if condition.get("status") != "False":
        return None
    message = condition.get("message", "")
    missing = re.search(r'persistentvolumeclaim "([^"]+)" not found', message)
    if missing:
        return Stalled("ClaimNotFound", f"PersistentVolumeClaim {missing[1]!r} does not exist")
    text = f"pod {pod['metadata']['name']} finds no node: {shorten(message)}"
    return Stalled(condition.get("reason") or "Unschedulable", text)


def _containers(pods: Sequence[Manifest]) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    for pod in pods:
        status = pod.get("status", {})
        for each in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
            yield pod, each
