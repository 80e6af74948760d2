"""The files of a deleted job."""

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.decision import Decision
from finetune_operator.jobs.workspace import orphan_keys, reconcile_workspace, workspace_key

from tests.unit.jobs.world import JOB_UID, NAMESPACE, SETTINGS, START, World, job_manifest

ARTIFACT = "pvc://finetune-workspace/artifacts/glossary-1b4e28ba"
JANITOR = "finetune-janitor-1b4e28ba"


def deleted() -> World:
    """A job that was served and then deleted; its pods are going."""
    world = World()
    world.run_until("serve")
    del world.objects["FineTuneJob", NAMESPACE, "glossary"]
    return world


def look(world: World, seconds: int = 0) -> Decision:
    (key,) = {workspace_key({"metadata": _meta()})}
    return reconcile_workspace(key, world, SETTINGS, START + timedelta(seconds=seconds))


def _meta() -> dict[str, str]:
    return {"name": "glossary", "namespace": NAMESPACE, "uid": JOB_UID}


def collect(world: World) -> None:
    for kind, space, name in list(world.objects):
        if kind in ("Job", "Pod", "ConfigMap", "Service"):
            del world.objects[kind, space, name]


def removed_folders(decision: Decision) -> list[str]:
    (janitor,) = decision.create
    assert janitor["metadata"]["name"] == JANITOR
    (variable,) = janitor["spec"]["template"]["spec"]["containers"][0]["env"]
    return str(variable["value"]).split()


def test_nothing_is_removed_while_a_pod_may_write() -> None:
    world = deleted()
    decision = look(world)
    assert not decision.create
    assert decision.requeue_after


def test_folder_goes_and_artifact_stays_while_an_endpoint_reads_it() -> None:
    world = deleted()
    collect(world)
    assert removed_folders(look(world)) == [f"jobs/{JOB_UID}"]


def test_artifact_of_an_older_revision_stays_too() -> None:
    world = deleted()
    collect(world)
    endpoint = world.objects["ModelEndpoint", NAMESPACE, "glossary"]
    uri = endpoint["spec"]["artifact"]["uri"]
    endpoint["spec"]["artifact"]["uri"] = "pvc://finetune-workspace/artifacts/newer-00000000"
    endpoint["status"] = {"revisions": [{"uri": uri}]}
    assert removed_folders(look(world)) == [f"jobs/{JOB_UID}"]


def test_artifact_goes_with_the_job_when_nothing_reads_it() -> None:
    world = deleted()
    collect(world)
    del world.objects["ModelEndpoint", NAMESPACE, "glossary"]
    assert removed_folders(look(world)) == [f"jobs/{JOB_UID}", "artifacts/glossary-1b4e28ba"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"uri": ARTIFACT}},
        {"model": {"uri": f"{ARTIFACT}/"}},
        {"objective": "GRPO", "grpo": {"rewardModel": {"uri": ARTIFACT}}},
        {"dataset": {"train": [{"uri": f"{ARTIFACT}/rows.jsonl"}]}},
    ],
)
def test_artifact_stays_for_a_job_that_starts_from_it(changes: dict[str, Any]) -> None:
    world = deleted()
    collect(world)
    del world.objects["ModelEndpoint", NAMESPACE, "glossary"]
    other = job_manifest(**changes)
    other["metadata"] |= {"name": "next", "uid": "another"}
    world.put(other)
    assert removed_folders(look(world)) == [f"jobs/{JOB_UID}"]

    other["status"] = {"conditions": [{"type": "Succeeded", "status": "True"}]}
    world.put(other)
    assert len(removed_folders(look(world))) == 2


def test_key_is_kept_until_the_janitor_is_done() -> None:
    world = deleted()
    collect(world)
    world._create(look(world).create[0])
    assert look(world).requeue_after
    world.end_job(JANITOR, "Complete")
    assert look(world) == Decision()


def test_failed_janitor_is_looked_at_again_later() -> None:
    world = deleted()
    collect(world)
    world._create(look(world).create[0])
    world.end_job(JANITOR, "Failed")
    assert look(world) == Decision(requeue_after=300.0)


def test_job_that_lives_keeps_its_files() -> None:
    world = World()
    world.settle()
    assert look(world) == Decision()


def test_new_job_of_the_same_name_does_not_keep_the_old_files() -> None:
    world = deleted()
    collect(world)
    meta = {**_meta(), "uid": "another-uid"}
    world.put({"kind": "FineTuneJob", "metadata": meta})
    assert f"jobs/{JOB_UID}" in removed_folders(look(world))


def test_namespace_without_a_workspace_has_nothing_to_remove() -> None:
    world = deleted()
    collect(world)
    del world.objects["PersistentVolumeClaim", NAMESPACE, "finetune-workspace"]
    assert look(world) == Decision()


def test_jobs_deleted_while_no_operator_ran_are_found_by_their_children() -> None:
    world = World()
    world.settle()
    assert orphan_keys(world) == ()
    del world.objects["FineTuneJob", NAMESPACE, "glossary"]
    assert orphan_keys(world) == (workspace_key({"metadata": _meta()}),)
