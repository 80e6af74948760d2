"""Names and addresses that several rooms must agree on.

Every name is computed from the job alone, so that creating a child twice is impossible and a
restarted operator finds what its predecessor made. A uid is in every name that outlives the
object it was made for.
"""

import hashlib

from finetune_api.run import StageName

WORKSPACE_MODELS = "models"
WORKSPACE_JOBS = "jobs"
WORKSPACE_ARTIFACTS = "artifacts"
JANITOR = "finetune-janitor"
"""Name of a namespace's janitor: its Job, and the ConfigMap that calls for it."""


def child_name(job_name: str, stage: StageName, attempt: int) -> str:
    """Name of the Job, ConfigMap and Service of one attempt."""
    return f"{job_name}-{stage}-{attempt}"


def master_host(attempt_name: str) -> str:
    """DNS name of the pod with index 0, resolvable inside the job's namespace."""
    return f"{attempt_name}-0.{attempt_name}"


def model_path(uri: str, revision: str | None) -> str:
    """Cache folder of a base model inside the workspace; jobs that name the same model share it."""
    if revision is None:
        revision = "main" if uri.startswith("hf://") else ""
    key = hashlib.sha256(f"{uri}@{revision}".encode()).hexdigest()[:16]
    return f"{WORKSPACE_MODELS}/{key}"


def job_path(uid: str) -> str:
    """Folder inside the workspace that belongs to one job."""
    return f"{WORKSPACE_JOBS}/{uid}"


def job_mark(uid: str) -> str:
    """What stands for a job's folder and artifact in a list of what to keep."""
    return f"{WORKSPACE_JOBS}/{uid[:8]}"


def artifact_path(job_name: str, uid: str) -> str:
    """Folder inside the workspace that export writes."""
    return f"{WORKSPACE_ARTIFACTS}/{job_name}-{uid[:8]}"


def artifact_uri(claim: str, job_name: str, uid: str) -> str:
    """pvc:// address of what export writes."""
    return f"pvc://{claim}/{artifact_path(job_name, uid)}"


def claim_of(uri: str) -> str | None:
    """Claim that a pvc:// address names; None for every other address."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] or None if scheme == "pvc" else None


def artifact_in(uri: str, workspace: str) -> str | None:
    """Folder of the workspace that holds the artifact at this address; None where the address
    names something else of the workspace, or leads out of the folder."""
    claim, *path = uri.partition("://")[2].strip("/").split("/")
    kind, *inner = path or [""]
    if claim != workspace or kind != WORKSPACE_ARTIFACTS or not inner:
        return None
    return None if {"", ".", ".."} & set(inner) else f"{WORKSPACE_ARTIFACTS}/{inner[0]}"
