"""Raw Kubernetes objects: times, conditions, references, whether a job or a pod has ended, and
which reasons of a waiting container concern its image."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from finetune_api.base import REASON_PATTERN, Condition, ConditionStatus

from finetune_operator.decision import Manifest, ObjectRef

IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
"""Reasons of a waiting container whose image the kubelet cannot pull."""
FINAL_POD_PHASES = ("Succeeded", "Failed")


def parse_time(text: object) -> datetime | None:
    """An RFC 3339 time as the API server writes it; None for anything else, also for a time
    without a zone."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else None


def format_time(at: datetime) -> str:
    """RFC 3339 with whole seconds; `at` must be in UTC."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


MAX_REASON, MAX_TEXT = 128, 1024
"""Characters of a reason that a condition can hold, and of a text that is taken from an object of
another component into a message."""


def read_reason(written: object, default: str) -> str:
    """The reason that another component wrote; `default` where a condition could not hold it."""
    text = written if isinstance(written, str) else ""
    return text if len(text) <= MAX_REASON and re.fullmatch(REASON_PATTERN, text) else default


def read_text(written: object) -> str:
    """The text that another component wrote, shortened to MAX_TEXT characters."""
    text = written if isinstance(written, str) else ""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def find_condition(manifest: Manifest, kind: str) -> dict[str, Any]:
    """The condition of this type in the object's status; empty where there is none."""
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind), {})


def merge_conditions(
    old: Iterable[Condition],
    desired: Mapping[str, tuple[ConditionStatus, str, str]],
    generation: int,
    timestamp: str,
) -> list[Condition]:
    """The desired conditions: by type their status, reason and message. One that keeps its status
    keeps its transition time."""
    before = {each.type: each for each in old}
    merged = []
    for kind, (status, reason, message) in desired.items():
        last = before.get(kind)
        since = last.last_transition_time if last and last.status == status else timestamp
        merged.append(
            Condition(
                type=kind,
                status=status,
                reason=reason,
                message=message,
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return merged


def is_terminal(job: Manifest) -> bool:
    """Whether a FineTuneJob has ended; read from the raw status, so that a status that this version
    cannot parse does not start the job again."""
    status = find_condition(job, "Succeeded").get("status")
    return status is not None and status != "Unknown"


def is_finished(job: Manifest) -> bool:
    """Whether a batch/v1 Job is Complete or Failed."""
    return finished_condition(job) is not None


def finished_condition(job: Manifest) -> dict[str, Any] | None:
    """The condition by which the Job controller marked a batch/v1 Job Complete or Failed."""
    for kind in ("Complete", "Failed"):
        found = find_condition(job, kind)
        if found.get("status") == "True":
            return found
    return None


def has_pod_ended(pod: Manifest) -> bool:
    """Whether a pod has reached a final phase; an evicted one stays as an object."""
    return (pod.get("status") or {}).get("phase") in FINAL_POD_PHASES


def object_ref(manifest: Manifest) -> ObjectRef:
    """A reference to this very object, and to no later one of its name."""
    meta = manifest["metadata"]
    return ObjectRef(manifest["kind"], meta["namespace"], meta["name"], meta["uid"])
