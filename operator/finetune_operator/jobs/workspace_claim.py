"""Whether the workspace's claim can hold what a stage needs, before it is launched.

A missing claim is created; one that the platform team made is used as it is. A problem with it is
reported while it can be repaired: on a claim that only one node can mount, two pods of a gang would
wait for each other on two nodes, and on one that is being deleted new pods hang.
"""

from finetune_api.jobspec import FineTuneJobSpec
from finetune_api.run_config import RunConfig

from finetune_operator.decision import Manifest
from finetune_operator.stalled import Stalled

SHARED = "ReadWriteMany"


def check_workspace(claim: Manifest, spec: FineTuneJobSpec, config: RunConfig) -> Stalled | None:
    """What is wrong with the workspace's claim for this stage."""
    name = claim["metadata"]["name"]
    if claim["metadata"].get("deletionTimestamp"):
        return Stalled(
            "WorkspaceTerminating",
            f"PersistentVolumeClaim {name} is being deleted, which takes until no pod uses it; the "
            "job continues when it is gone and created again",
        )
    if (claim.get("status") or {}).get("phase") == "Lost":
        return Stalled(
            "WorkspaceLost",
            f"PersistentVolumeClaim {name} has lost its volume; restore the volume, or delete the "
            "claim to begin with an empty one",
        )
    nodes = _training_nodes(spec, config)
    modes = [str(mode) for mode in (claim.get("spec") or {}).get("accessModes") or ()]
    if nodes > 1 and modes and SHARED not in modes:
        return Stalled(
            "WorkspaceNotShared",
            f"PersistentVolumeClaim {name} is {', '.join(modes)} and the job trains on {nodes} "
            f"nodes; make it {SHARED}, or set compute.nodes to 1",
        )
    return None


def _training_nodes(spec: FineTuneJobSpec, config: RunConfig) -> int:
    """Nodes that the job trains on, as far as that is known before it does."""
    if config.stage == "train" and config.plan:
        return config.plan.nodes
    return spec.compute.nodes or 1 if config.stage == "prepare" else 1
