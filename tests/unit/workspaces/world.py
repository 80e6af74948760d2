"""A job and the workspace of its namespace, and what the operator decides about the workspace."""

from __future__ import annotations

from finetune_operator.decision import Decision, Manifest, Settings
from finetune_operator.resources.janitor import build_ledger, parse_keep_list
from finetune_operator.workspaces.plan import FIRST_AFTER, reconcile_workspace, workspace_key

from tests.unit.jobs.world import NAMESPACE, SETTINGS, START, World

OTHER_UID = "77777777-2fa1-41d2-883f-0016d3cca427"
OLD = "artifacts/older-0a0a0a0a"
OLD_URI = f"pvc://finetune-workspace/{OLD}"
JANITOR = "finetune-janitor"
ENDED = [{"type": "Succeeded", "status": "True"}]


def fresh() -> World:
    """A job that has begun; its namespace has a workspace by now."""
    world = World()
    world.settle()
    kept_before = build_ledger(NAMESPACE, [])
    kept_before["metadata"]["creationTimestamp"] = (START - FIRST_AFTER).isoformat()
    world.load(kept_before)
    return world


def reconcile(world: World, settings: Settings = SETTINGS) -> Decision:
    """One decision about the workspace, carried out."""
    decision = reconcile_workspace(
        workspace_key({"metadata": {"namespace": NAMESPACE}}), world, settings, world.now
    )
    for manifest in decision.create:
        world.create(manifest)
    for manifest in decision.apply:
        old = world.get("ConfigMap", NAMESPACE, JANITOR) or {"metadata": {}}
        made = old["metadata"].get("creationTimestamp", world.now.isoformat())
        meta = {**manifest["metadata"], "creationTimestamp": made}
        world.load({**manifest, "metadata": meta})
    for ref in decision.delete:
        world.delete(ref)
    return decision


def janitor(world: World) -> Manifest | None:
    return world.get("Job", NAMESPACE, JANITOR)


def kept(world: World) -> frozenset[str]:
    found = janitor(world)
    assert found is not None
    return parse_keep_list(found)


def clean(world: World, outcome: str = "Complete") -> None:
    """A janitor from its start to its end."""
    assert janitor(world) is None
    reconcile(world)
    world.end_job(JANITOR, outcome)


def forget(world: World) -> None:
    """The job is deleted and all its children are collected."""
    for kind in ("FineTuneJob", "Pod", "Service", "ConfigMap", "Job"):
        for name in world.names(kind):
            if kind in ("FineTuneJob", "Pod", "Service") or name.startswith("glossary-"):
                world.remove(kind, name)


def add_endpoint(world: World, uri: str, *older: str) -> None:
    revisions = [{"uri": each} for each in older]
    meta = {"name": "bot", "namespace": NAMESPACE, "uid": "endpoint"}
    spec = {"artifact": {"uri": uri}}
    status = {"revisions": revisions}
    world.load({"kind": "ModelEndpoint", "metadata": meta, "spec": spec, "status": status})
