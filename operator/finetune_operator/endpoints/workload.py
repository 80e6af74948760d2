"""Whether the object that runs a revision has come up: a Deployment's view, and KServe's.

KServe shows an address long before anything answers, and its Ready condition may speak of an
older generation. So Ready counts only together with the model's state and with ready pods.
"""

from datetime import datetime, timedelta
from typing import Literal

from finetune_operator.decision import Manifest
from finetune_operator.endpoints import pods
from finetune_operator.endpoints.observe import Revision
from finetune_operator.manifest import find_condition, parse_time
from finetune_operator.stalled import Stalled

INVALID_SPEC_GRACE = timedelta(seconds=30)
"""KServe may see the InferenceService before the ServingRuntime that it names."""
KSERVE_CONDITIONS = ("Ready", "PredictorReady", "IngressReady")

Progress = Literal["Starting", "Up"] | Stalled
"""Starting, Up (may be checked), or a Stalled that is final: the revision has failed."""


def progress(revision: Revision, replicas: int, now: datetime) -> Progress:
    """How far the revision's workload is."""
    if revision.child is None:
        return "Starting"
    if revision.kserve:
        failed = _kserve_failure(revision.child, now)
        if failed:
            return failed
        up = _kserve_up(revision.child)
        if revision.predictor is not None:
            up = up and _deployment_up(revision.predictor, replicas)
    else:
        up = _deployment_up(revision.child, replicas)
    return "Up" if up and len(pods.ready(revision.pods)) >= replicas else "Starting"


def stuck(revision: Revision) -> Stalled | None:
    """Why there are no pods although there is a Deployment, such as a quota."""
    workload = revision.predictor if revision.kserve else revision.child
    if workload is None or revision.pods:
        return None
    failure = find_condition(workload, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    text = f"no pod can be made: {pods.shorten(failure.get('message', ''))}"
    return Stalled(failure.get("reason") or "FailedCreate", text)


def replicas_of(child: Manifest) -> int | None:
    """The size that the Deployment or InferenceService was given."""
    spec = child.get("spec", {})
    size = spec.get("replicas", spec.get("predictor", {}).get("minReplicas"))
    return int(size) if size is not None else None


def _deployment_up(deployment: Manifest, replicas: int) -> bool:
    status = deployment.get("status", {})
    current = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return bool(
        current
        and status.get("updatedReplicas", 0) >= replicas
        and status.get("readyReplicas", 0) >= replicas
    )


def _kserve_up(service: Manifest) -> bool:
    if any(find_condition(service, each).get("status") != "True" for each in KSERVE_CONDITIONS):
        return False
    model = service.get("status", {}).get("modelStatus", {})
    loaded = model.get("states", {}).get("activeModelState") == "Loaded"
    return bool(loaded and model.get("transitionStatus") == "UpToDate")


def _kserve_failure(service: Manifest, now: datetime) -> Stalled | None:
    model = service.get("status", {}).get("modelStatus", {})
    transition, states = model.get("transitionStatus"), model.get("states", {})
    failed = "FailedToLoad" in (states.get("activeModelState"), states.get("targetModelState"))
    if transition == "InvalidSpec":
        created = parse_time(service["metadata"].get("creationTimestamp"))
        failed = created is None or now - created >= INVALID_SPEC_GRACE
    elif transition == "BlockedByFailedLoad":
        failed = True
    if not failed:
        return None
    info = model.get("lastFailureInfo", {})
    reason = transition if transition in ("InvalidSpec", "BlockedByFailedLoad") else "FailedToLoad"
    cause = f"{info['reason']}: " if info.get("reason") else ""
    words = pods.last_words(info.get("message", "")) or "KServe gives no message"
    return Stalled(reason, f"KServe: {cause}{words}")
