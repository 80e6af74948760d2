"""What uses an AcceleratorProfile: jobs, endpoints, and the devices that training pods hold.

Read from raw objects, so that those of another version count too. An object that names no profile
uses the default one, if there is exactly one.
"""

from dataclasses import dataclass
from typing import Any

from finetune_operator.decision import JOB_UID_LABEL, STAGE_LABEL, Manifest, View
from finetune_operator.manifest import has_pod_ended, is_terminal
from finetune_operator.profiles import list_defaults


@dataclass(frozen=True)
class JobUse:
    """What a job takes of a profile; a change of it concerns the status of profiles."""

    profile: str | None
    """Name of the profile; None for the default one."""
    has_ended: bool
    devices_per_pod: int


@dataclass(frozen=True)
class ProfileUse:
    """What uses one profile now."""

    jobs: int
    endpoints: int
    training_devices: int


def count_use(name: str, view: View) -> ProfileUse:
    """What uses the profile of this name in the namespaces that the View has."""
    defaults = list_defaults(view)
    default = defaults[0]["metadata"]["name"] if len(defaults) == 1 else None
    served = [get_endpoint_profile(endpoint) for endpoint in view.list("ModelEndpoint")]
    users = [
        (use, job)
        for job in view.list("FineTuneJob")
        if ((use := get_job_use(job)).profile or default) == name
    ]
    return ProfileUse(
        jobs=sum(not use.has_ended for use, _ in users),
        endpoints=sum((profile or default) == name for profile in served),
        training_devices=sum(use.devices_per_pod * _count_holders(job, view) for use, job in users),
    )


def get_job_use(job: Manifest) -> JobUse:
    """The profile of the plan, or before there is one that of the spec."""
    status: dict[str, Any] = job.get("status") or {}
    plan = status.get("plan") or {}
    compute = (job.get("spec") or {}).get("compute") or {}
    return JobUse(
        profile=plan.get("profile") or compute.get("profile"),
        has_ended=is_terminal(job),
        devices_per_pod=int(plan.get("gpusPerNode") or 0),
    )


def get_endpoint_profile(endpoint: Manifest) -> str | None:
    """Name of the profile that the endpoint serves on; None for the default one."""
    profile: str | None = (endpoint.get("spec") or {}).get("profile")
    return profile


def holds_devices(pod: Manifest) -> bool:
    """Whether a training pod has a node and has not ended."""
    is_training = (pod["metadata"].get("labels") or {}).get(STAGE_LABEL) == "train"
    has_node = bool((pod.get("spec") or {}).get("nodeName"))
    return is_training and has_node and not has_pod_ended(pod)


def _count_holders(job: Manifest, view: View) -> int:
    """The pods of a job that hold devices, also after its end."""
    metadata = job["metadata"]
    pods = view.list_by_label("Pod", metadata["namespace"], JOB_UID_LABEL, metadata["uid"])
    return sum(holds_devices(pod) for pod in pods)
