"""Whether the workspace's claim can hold what a stage needs, before anything is launched.

A claim that is not there is made; one that the platform team made is used as it is. What is wrong
with it is told while it can be put right: on a claim that only one node can mount, two pods of a
gang would wait for each other on two nodes, and on one that is being deleted new pods hang.
"""

from finetune_api.run import RunConfig

from finetune_operator.decision import Manifest
from finetune_operator.jobs.draft import Context
from finetune_operator.stalled import Stalled

SHARED = "ReadWriteMany"


def workspace_stall(ctx: Context, config: RunConfig) -> Stalled | None:
    """What is wrong with the workspace for this stage."""
    name = ctx.settings.workspace_claim
    claim = ctx.view.get("PersistentVolumeClaim", ctx.namespace, name)
    if claim is None:
        return None
    if claim["metadata"].get("deletionTimestamp"):
        return Stalled(
            "WorkspaceTerminating",
            f"PersistentVolumeClaim {name} is being deleted, which takes until no pod uses it; the "
            "job goes on when it is gone and made anew",
        )
    if (claim.get("status") or {}).get("phase") == "Lost":
        return Stalled(
            "WorkspaceLost",
            f"PersistentVolumeClaim {name} has lost its volume; restore the volume, or delete the "
            "claim to begin with an empty one",
        )
    nodes, modes = _nodes(ctx, config), _modes(claim)
    if nodes > 1 and modes and SHARED not in modes:
        return Stalled(
            "WorkspaceNotShared",
            f"PersistentVolumeClaim {name} is {', '.join(modes)} and the job trains on {nodes} "
            f"nodes; make it {SHARED}, or set compute.nodes to 1",
        )
    return None


def _nodes(ctx: Context, config: RunConfig) -> int:
    """Nodes that the job trains on, as far as that is known before it does."""
    if config.stage == "train" and config.plan:
        return config.plan.nodes
    return ctx.spec.compute.nodes or 1 if config.stage == "prepare" else 1


def _modes(claim: Manifest) -> list[str]:
    return [str(mode) for mode in (claim.get("spec") or {}).get("accessModes") or ()]
