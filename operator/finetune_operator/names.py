"""Names and addresses on which several modules of the operator must agree.

Every name is computed from the job alone, so that a child cannot be created twice and a restarted
operator finds the children of the process before it. The name of everything that outlives its
object contains the object's uid.
"""

import hashlib

from finetune_api.protocol import StageName

WORKSPACE_MODELS = "models"
WORKSPACE_JOBS = "jobs"
WORKSPACE_ARTIFACTS = "artifacts"
JANITOR = "finetune-janitor"
"""Name of a namespace's janitor Job and of the ConfigMap that is its ledger."""


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


def job_entry(uid: str) -> str:
    """The entry in the janitor's list by which it keeps a job's folder and artifact."""
    return f"{WORKSPACE_JOBS}/{uid[:8]}"


def artifact_path(job_name: str, uid: str) -> str:
    """Folder inside the workspace that export writes."""
    return f"{WORKSPACE_ARTIFACTS}/{job_name}-{uid[:8]}"


def artifact_uri(claim: str, job_name: str, uid: str) -> str:
    """pvc:// address of what export writes."""
    return f"pvc://{claim}/{artifact_path(job_name, uid)}"


def claim_name(uri: str) -> str | None:
    """The claim in a pvc:// address; None for every other address."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] or None if scheme == "pvc" else None


def artifact_folder(uri: str, workspace: str) -> str | None:
    """Folder of the workspace that holds the artifact at this address; None where the address
    names something else of the workspace, or leads out of the folder."""
    claim, *path = uri.partition("://")[2].strip("/").split("/")
    kind, *inner = path or [""]
    if claim != workspace or kind != WORKSPACE_ARTIFACTS or not inner:
        return None
    return None if {"", ".", ".."} & set(inner) else f"{WORKSPACE_ARTIFACTS}/{inner[0]}"
