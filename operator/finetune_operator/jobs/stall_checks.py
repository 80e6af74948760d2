"""What the pods of a running attempt wait for, although nothing has failed.

Every message names the thing that is missing. The job continues by itself when that thing appears.
"""

import re
from datetime import datetime, timedelta

from finetune_operator.decision import View
from finetune_operator.jobs.observe import Attempt, Observed, PodFacts
from finetune_operator.manifest import IMAGE_REASONS
from finetune_operator.resources.metadata import QUEUE_LABEL
from finetune_operator.stalled import INDEFINITELY, Stalled, choose_stall

SCHEDULING_PATIENCE = timedelta(seconds=10)
"""Time in which the scheduler may find a node before the status says that it found none."""
CREATION_PATIENCE = timedelta(seconds=20)
"""Time in which the Job controller may create pods."""
QUERY_PATIENCE = timedelta(seconds=5)
"""Time after which the operator looks for the reason."""
_MISSING = re.compile(r'(secret|configmap|serviceaccount) "?([^"\s]+)"? not found')

_ABOUT_VOLUMES = re.compile(r"persistent ?volume", re.IGNORECASE)


def find_stall(
    attempt: Attempt,
    view: View,
    namespace: str,
    claims: list[str],
    patience: timedelta,
    now: datetime,
) -> Stalled | None:
    """The first thing that a pod waits for; a node is expected for as long as `patience`, and what
    is expected is reported last."""
    return choose_stall(
        [
            *(
                _find_container_stall(pod)
                or _find_scheduling_stall(pod, view, namespace, claims, patience, now)
                for pod in attempt.pods
            ),
            _find_creation_stall(attempt, now),
        ]
    )


def find_orphans(observed: Observed, following: str, now: datetime) -> Stalled | None:
    """Pods whose Job was deleted without them (--cascade=orphan): no controller ends them, and the
    attempt that follows would train alongside them, on other devices."""
    pods = [
        pod.name
        for attempt in observed.all_attempts()
        for pod in attempt.pods
        if pod.is_orphan and pod.may_run(now)
    ]
    if not pods:
        return None
    named = " ".join(pods[:4])
    were, it, have = ("were", "them", "they have") if pods[1:] else ("was", "it", "it has")
    job = "their Job" if pods[1:] else "its Job"
    subject = f"{len(pods)} pods" if pods[1:] else f"pod {named}"
    return Stalled(
        "PodsOrphaned",
        f"{subject} {were} left when {job} was deleted without {it}, and would run alongside "
        f"{following}; the job continues when {have} ended: kubectl delete pod {named}",
    )


def _find_container_stall(pod: PodFacts) -> Stalled | None:
    reason, message = pod.waiting_reason, pod.waiting_message
    if reason in IMAGE_REASONS:
        return Stalled("ImagePullFailed", f"pod {pod.name}: {reason}: {message}".rstrip(": "))
    if reason in ("CreateContainerConfigError", "CreateContainerError"):
        missing = _MISSING.search(message)
        if missing and missing[1] == "secret":
            return Stalled(
                "SecretNotFound",
                f"Secret {missing[2]} does not exist; the job continues when it is created",
            )
        return Stalled("ContainerNotCreated", f"pod {pod.name}: {message or reason}")
    return None


def _find_scheduling_stall(
    pod: PodFacts,
    view: View,
    namespace: str,
    claims: list[str],
    patience: timedelta,
    now: datetime,
) -> Stalled | None:
    since = pod.unscheduled_since
    if since is None or pod.has_ended or now - since < SCHEDULING_PATIENCE:
        return None
    for claim in claims if _ABOUT_VOLUMES.search(pod.unscheduled_message) else ():
        found = view.get("PersistentVolumeClaim", namespace, claim) or {}
        if (found.get("status") or {}).get("phase") != "Bound":
            return Stalled(
                "VolumeClaimNotBound",
                f"PersistentVolumeClaim {claim} has no volume: {pod.unscheduled_message}",
            )
    message = f"pod {pod.name}: {pod.unscheduled_message}"
    until = since + patience if now - since < patience else None
    return Stalled("Unschedulable", message, until)


def _find_creation_stall(attempt: Attempt, now: datetime) -> Stalled | None:
    """A queue holds the Job back; a quota or an admission policy rejects pods with an event on the
    Job only."""
    if attempt.is_held and attempt.job_end() is None:
        return Stalled("WaitingForQueue", describe_held_job(attempt), INDEFINITELY)
    if not has_waited_for_pods(attempt, CREATION_PATIENCE, now):
        return None
    return Stalled("PodsNotCreated", describe_missing_pods(attempt))


def has_waited_for_pods(attempt: Attempt, patience: timedelta, now: datetime) -> bool:
    """Whether the Job controller has had this time, and not created every pod."""
    started = attempt.job_started()
    return attempt.lacks_pods and started is not None and now >= started + patience


def describe_held_job(attempt: Attempt) -> str:
    """Why an attempt has no pods whose Job another controller has suspended."""
    message = f"{attempt.stage} waits: its Job is suspended, as by a queue without free capacity"
    labels = (attempt.job or {}).get("metadata", {}).get("labels") or {}
    if QUEUE_LABEL in labels:
        return message
    return f"{message}; it is in no queue of Kueue, as the FineTuneJob has no label {QUEUE_LABEL}"


def describe_missing_pods(attempt: Attempt) -> str:
    """How many pods the Job controller has created, and why the API server refuses others."""
    name = attempt.job["metadata"]["name"] if attempt.job else attempt.stage
    count = f"Job {name} has {len(attempt.pods)} of {attempt.nodes} pods"
    missing = "the others" if attempt.pods else "them"
    if attempt.pod_refusal:
        return f"{count}; the API server refuses {missing}: {attempt.pod_refusal}"
    return (
        f"{count}; a quota or an admission policy may refuse {missing}: kubectl describe job {name}"
    )
