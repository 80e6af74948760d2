"""Whether the Deployment or InferenceService of a revision is up.

KServe publishes an address long before the pods answer, and its Ready condition may belong to an
older generation. So Ready counts only together with the model's state and with ready pods.
"""

from datetime import datetime, timedelta
from typing import Literal

from finetune_operator.decision import Manifest
from finetune_operator.endpoints import pods
from finetune_operator.endpoints.failure import RevisionFailure
from finetune_operator.endpoints.observe import Revision
from finetune_operator.manifest import find_condition, parse_time, read_reason
from finetune_operator.stalled import Stalled

INVALID_SPEC_GRACE = timedelta(seconds=30)
"""KServe may see the InferenceService before the ServingRuntime that it names."""
KSERVE_CONDITIONS = ("Ready", "PredictorReady", "IngressReady")

Progress = Literal["Starting", "Up"] | RevisionFailure
"""Up: the checks may begin. A failure is final: the revision has failed."""


def check_progress(revision: Revision, replicas: int, now: datetime) -> Progress:
    """Whether the revision's workload is up, still starting, or has failed."""
    if revision.child is None:
        return "Starting"
    if revision.is_kserve:
        failure = _find_kserve_failure(revision.child, now)
        if failure:
            return failure
        is_up = _is_kserve_up(revision.child)
        if revision.predictor is not None:
            is_up = is_up and _is_deployment_up(revision.predictor, replicas)
    else:
        is_up = _is_deployment_up(revision.child, replicas)
    return "Up" if is_up and len(pods.select_ready(revision.pods)) >= replicas else "Starting"


def find_creation_stall(revision: Revision) -> Stalled | None:
    """Why a Deployment has no pods, such as a quota."""
    workload = revision.predictor if revision.is_kserve else revision.child
    if workload is None or revision.pods:
        return None
    failure = find_condition(workload, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    text = f"no pod can be created: {pods.shorten(failure.get('message', ''))}"
    return Stalled(read_reason(failure.get("reason"), "FailedCreate"), text)


def read_replicas(child: Manifest) -> int | None:
    """The number of replicas in the spec of a Deployment or InferenceService."""
    spec = child.get("spec", {})
    size = spec.get("replicas", spec.get("predictor", {}).get("minReplicas"))
    return int(size) if size is not None else None


def _is_deployment_up(deployment: Manifest, replicas: int) -> bool:
    status = deployment.get("status", {})
    generation = deployment["metadata"].get("generation", 0)
    return bool(
        status.get("observedGeneration", 0) >= generation
        and status.get("updatedReplicas", 0) >= replicas
        and status.get("readyReplicas", 0) >= replicas
    )


def _is_kserve_up(service: Manifest) -> bool:
    if any(find_condition(service, each).get("status") != "True" for each in KSERVE_CONDITIONS):
        return False
    model = service.get("status", {}).get("modelStatus", {})
    is_loaded = model.get("states", {}).get("activeModelState") == "Loaded"
    return bool(is_loaded and model.get("transitionStatus") == "UpToDate")


def _find_kserve_failure(service: Manifest, now: datetime) -> RevisionFailure | None:
    model = service.get("status", {}).get("modelStatus", {})
    transition, states = model.get("transitionStatus"), model.get("states", {})
    has_failed = "FailedToLoad" in (states.get("activeModelState"), states.get("targetModelState"))
    if transition == "InvalidSpec":
        created = parse_time(service["metadata"].get("creationTimestamp"))
        has_failed = created is None or now - created >= INVALID_SPEC_GRACE
    elif transition == "BlockedByFailedLoad":
        has_failed = True
    if not has_failed:
        return None
    info = model.get("lastFailureInfo", {})
    reason = transition if transition in ("InvalidSpec", "BlockedByFailedLoad") else "FailedToLoad"
    cause = f"{info['reason']}: " if info.get("reason") else ""
    detail = pods.find_last_error(info.get("message", "")) or "KServe reports no message"
    return RevisionFailure(reason, f"KServe: {cause}{detail}")
