"""What keeps a job from going on although nothing has failed.

Every stall names the thing that is missing, and ends by itself when that thing appears: nothing
is remembered, so there is nothing to reset.
"""

import re
from datetime import datetime, timedelta

from finetune_operator.decision import View
from finetune_operator.jobs.observe import Attempt, PodFacts
from finetune_operator.stalled import Stalled

SCHEDULING_PATIENCE = timedelta(seconds=10)
"""Time that the scheduler may look for a node before anybody is told."""
CREATION_PATIENCE = timedelta(seconds=20)
"""Time that the Job controller may take to create pods."""
IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
_MISSING = re.compile(r'(secret|configmap|serviceaccount) "?([^"\s]+)"? not found')

_ABOUT_VOLUMES = re.compile(r"persistent ?volume", re.IGNORECASE)


def claim_stall(view: View, namespace: str, claims: list[str]) -> Stalled | None:
    """The first of the user's claims that is not there or lost."""
    for claim in claims:
        found = view.get("PersistentVolumeClaim", namespace, claim)
        if found is None:
            return Stalled(
                "VolumeClaimNotFound",
                f"PersistentVolumeClaim {claim} does not exist in namespace {namespace}; the job "
                "goes on when it is created",
            )
        if (found.get("status") or {}).get("phase") == "Lost":
            return Stalled("VolumeClaimLost", f"PersistentVolumeClaim {claim} has lost its volume")
    return None


def attempt_stall(
    attempt: Attempt, view: View, namespace: str, claims: list[str], now: datetime
) -> Stalled | None:
    """What the pods of a running attempt wait for, if a person has to do something about it."""
    for pod in attempt.pods:
        stall = _container_stall(pod) or _scheduling_stall(pod, view, namespace, claims, now)
        if stall is not None:
            return stall
    return _creation_stall(attempt, now)


def _container_stall(pod: PodFacts) -> Stalled | None:
    reason, message = pod.waiting_reason, pod.waiting_message
    if reason in IMAGE_REASONS:
        return Stalled("ImagePullFailed", f"pod {pod.name}: {reason}: {message}".rstrip(": "))
    if reason in ("CreateContainerConfigError", "CreateContainerError"):
        missing = _MISSING.search(message)
        if missing and missing[1] == "secret":
            return Stalled(
                "SecretNotFound",
                f"Secret {missing[2]} does not exist; the job goes on when it is created",
            )
        return Stalled("ContainerNotCreated", f"pod {pod.name}: {message or reason}")
    return None


def _scheduling_stall(
    pod: PodFacts, view: View, namespace: str, claims: list[str], now: datetime
) -> Stalled | None:
    since = pod.unscheduled_since
    if since is None or pod.finished or now < since + SCHEDULING_PATIENCE:
        return None
    for claim in claims if _ABOUT_VOLUMES.search(pod.unscheduled_message) else ():
        found = view.get("PersistentVolumeClaim", namespace, claim) or {}
        if (found.get("status") or {}).get("phase") != "Bound":
            return Stalled(
                "VolumeClaimNotBound",
                f"PersistentVolumeClaim {claim} has no volume: {pod.unscheduled_message}",
            )
    return Stalled("Unschedulable", f"pod {pod.name}: {pod.unscheduled_message}")


def _creation_stall(attempt: Attempt, now: datetime) -> Stalled | None:
    """Quota and admission refuse pods with an event on the Job only."""
    if attempt.job is None or len(attempt.pods) >= attempt.nodes or attempt.job_end():
        return None
    if attempt.suspended:
        return None
    created = attempt.job_created()
    if created is None or now < created + CREATION_PATIENCE:
        return None
    name = attempt.job["metadata"]["name"]
    return Stalled(
        "PodsNotCreated",
        f"Job {name} has {len(attempt.pods)} of {attempt.nodes} pods; a quota or an admission "
        f"policy may refuse them: kubectl describe job {name}",
    )
