"""What stays in a workspace, and when a janitor removes the rest."""

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.decision import JOB_UID_LABEL, Decision, Manifest, Settings
from finetune_operator.names import model_path
from finetune_operator.resources.janitor import (
    LIST_SECONDS,
    MARGIN_SECONDS,
    build_janitor_job,
    build_ledger,
    format_keep_list,
    parse_keep_list,
)
from finetune_operator.workspaces.plan import (
    AFTER_FAILURE,
    AGAIN,
    FIRST,
    PERIOD,
    RECHECK,
    SPACING,
    STUCK,
    check_janitor,
    needed,
    reconcile_workspace,
    workspace_key,
    workspace_keys,
)

from tests.unit.jobs.world import JOB_UID, NAMESPACE, SETTINGS, START, World, job_manifest

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
    kept_before["metadata"]["creationTimestamp"] = (START - FIRST).isoformat()
    world.put(kept_before)
    return world


def look(world: World, settings: Settings = SETTINGS) -> Decision:
    """One decision about the workspace, carried out."""
    decision = reconcile_workspace(
        workspace_key({"metadata": {"namespace": NAMESPACE}}), world, settings, world.now
    )
    for manifest in decision.create:
        world._create(manifest)
    for manifest in decision.apply:
        old = world.get("ConfigMap", NAMESPACE, JANITOR) or {"metadata": {}}
        made = old["metadata"].get("creationTimestamp", world.now.isoformat())
        meta = {**manifest["metadata"], "creationTimestamp": made}
        world.put({**manifest, "metadata": meta})
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
    look(world)
    world.end_job(JANITOR, outcome)


def forget(world: World) -> None:
    """The job is deleted and all its children are collected."""
    for key in list(world.objects):
        if key[0] in ("FineTuneJob", "Pod", "Service") or key[2].startswith("glossary-"):
            del world.objects[key]


def add_endpoint(world: World, uri: str, *older: str) -> None:
    revisions = [{"uri": each} for each in older]
    meta = {"name": "bot", "namespace": NAMESPACE, "uid": "endpoint"}
    spec = {"artifact": {"uri": uri}}
    status = {"revisions": revisions}
    world.put({"kind": "ModelEndpoint", "metadata": meta, "spec": spec, "status": status})


def test_jobs_keep_their_folders_whether_they_have_ended_or_not() -> None:
    world = fresh()
    assert f"jobs/{JOB_UID[:8]}" in needed(world, NAMESPACE, SETTINGS)
    world.job["status"] = {"conditions": ENDED}
    assert set(needed(world, NAMESPACE, SETTINGS)) == {f"jobs/{JOB_UID[:8]}"}


def test_unfinished_job_keeps_its_models() -> None:
    reward = {"rewardModel": {"uri": "hf://acme/judge", "revision": "v1"}}
    world = World(job_manifest(objective="GRPO", grpo=reward))
    keep = set(needed(world, NAMESPACE, SETTINGS))
    assert model_path("pvc://assets/models/smol", None) in keep
    assert model_path("hf://acme/judge", "v1") in keep


@pytest.mark.parametrize("kind", ["Pod", "Job"])
def test_child_of_a_deleted_job_keeps_its_folder(kind: str) -> None:
    world = fresh()
    forget(world)
    meta = {"name": "late", "namespace": NAMESPACE, "labels": {JOB_UID_LABEL: OTHER_UID}}
    world.put({"kind": kind, "metadata": meta})
    assert set(needed(world, NAMESPACE, SETTINGS)) == {f"jobs/{OTHER_UID[:8]}"}


def test_endpoint_keeps_the_artifact_of_every_revision() -> None:
    world = fresh()
    newer = "pvc://finetune-workspace/artifacts/newer-00000000"
    add_endpoint(world, newer, newer, OLD_URI, "pvc://elsewhere/artifacts/a-00000000")
    keep = {each for each in needed(world, NAMESPACE, SETTINGS) if each.startswith("artifacts")}
    assert keep == {"artifacts/newer-00000000", OLD}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"uri": OLD_URI}},
        {"model": {"uri": f"{OLD_URI}/"}},
        {"objective": "GRPO", "grpo": {"rewardModel": {"uri": OLD_URI}}},
        {"dataset": {"train": [{"uri": f"{OLD_URI}/rows.jsonl"}]}},
        {"dataset": {"train": [{"uri": "s3://a/b"}], "validation": {"uri": f"{OLD_URI}/b"}}},
    ],
)
def test_artifact_stays_for_a_job_that_starts_from_it_until_that_has_ended(
    changes: dict[str, Any],
) -> None:
    world = World(job_manifest(**changes))
    assert OLD in needed(world, NAMESPACE, SETTINGS)
    world.job["status"] = {"conditions": ENDED}
    assert OLD not in needed(world, NAMESPACE, SETTINGS)


def test_first_janitor_comes_soon_after_the_first_job() -> None:
    world = World()
    world.settle()
    for _ in range(2):
        decision = look(world)
        assert not decision.create
        assert decision.requeue_after == FIRST.total_seconds()
    world.tick(FIRST.total_seconds())
    decision = look(world)
    assert [each["metadata"]["name"] for each in decision.create] == [JANITOR]
    assert f"jobs/{JOB_UID[:8]}" in kept(world)
    assert timedelta(seconds=LIST_SECONDS) + FIRST < timedelta(seconds=MARGIN_SECONDS)


def test_nothing_is_due_while_everything_is_needed() -> None:
    world = fresh()
    clean(world)
    decision = look(world)
    assert not decision.create
    assert not decision.delete
    assert not decision.apply
    assert decision.requeue_after == PERIOD.total_seconds()


def test_deleted_job_calls_for_a_janitor_that_does_not_know_it() -> None:
    world = fresh()
    clean(world)
    world.tick(SPACING.total_seconds())
    forget(world)
    assert look(world).delete
    look(world)
    assert kept(world) == {f"-jobs/{JOB_UID[:8]}"}, "it is known to be gone, however young"


def test_a_job_that_goes_before_the_first_janitor_calls_for_it() -> None:
    world = World()
    world.settle()
    look(world)
    assert janitor(world) is None
    forget(world)
    look(world)
    assert kept(world) == {f"-jobs/{JOB_UID[:8]}"}


def test_the_last_pod_of_a_deleted_job_is_waited_for() -> None:
    world = fresh()
    clean(world)
    del world.objects["FineTuneJob", NAMESPACE, "glossary"]
    world.tick(SPACING.total_seconds())
    decision = look(world)
    assert not decision.delete
    assert decision.requeue_after == RECHECK, "no event tells when it has gone"
    forget(world)
    assert look(world).delete


def test_job_that_came_and_went_between_two_janitors_is_not_forgotten() -> None:
    world = fresh()
    clean(world)
    other = job_manifest()
    other["metadata"] |= {"name": "short", "uid": OTHER_UID}
    world.put(other)
    look(world)
    del world.objects["FineTuneJob", NAMESPACE, "short"]
    world.tick(SPACING.total_seconds())
    assert look(world).delete, "the ledger remembers it, whoever looks now"


def test_revision_that_was_dropped_calls_for_a_janitor() -> None:
    world = fresh()
    add_endpoint(world, "pvc://finetune-workspace/artifacts/newer-00000000", OLD_URI)
    clean(world)
    world.tick(SPACING.total_seconds())
    assert not look(world).delete
    add_endpoint(world, "pvc://finetune-workspace/artifacts/newer-00000000")
    assert look(world).delete


def test_end_of_a_job_alone_calls_for_none() -> None:
    world = fresh()
    clean(world)
    world.tick(SPACING.total_seconds())
    world.job["status"] = {"conditions": ENDED}
    assert not look(world).delete, "its model stays for a while, its folder as long as the job"


def test_another_janitor_follows_when_artifacts_have_had_their_grace() -> None:
    world = fresh()
    clean(world)
    world.tick(SPACING.total_seconds())
    forget(world)
    look(world)
    clean(world)
    assert look(world).requeue_after == AGAIN.total_seconds()
    world.tick(AGAIN.total_seconds())
    assert look(world).delete
    clean(world)
    assert look(world).requeue_after == PERIOD.total_seconds()


def test_janitors_keep_a_distance_however_fast_jobs_go() -> None:
    world = fresh()
    clean(world)
    forget(world)
    decision = look(world)
    assert not decision.delete
    assert decision.requeue_after == SPACING.total_seconds()


def test_running_janitor_is_left_alone() -> None:
    world = fresh()
    look(world)
    forget(world)
    world.tick(SPACING.total_seconds())
    decision = look(world)
    assert not decision.create
    assert not decision.delete


def test_what_goes_while_a_janitor_runs_calls_for_the_next() -> None:
    world = fresh()
    look(world)
    forget(world)
    world.end_job(JANITOR, "Complete")
    world.tick(SPACING.total_seconds())
    assert look(world).delete


def test_failed_janitor_is_followed_by_another_one_later() -> None:
    world = fresh()
    clean(world, "Failed")
    assert look(world).requeue_after == AFTER_FAILURE.total_seconds()
    world.tick(AFTER_FAILURE.total_seconds())
    assert look(world).delete


def test_janitor_that_never_starts_is_made_anew_with_a_new_list() -> None:
    world = fresh()
    look(world)
    world.tick(STUCK.total_seconds())
    assert look(world).delete


def test_old_janitor_is_deleted_by_its_uid_and_not_twice() -> None:
    world = fresh()
    clean(world)
    world.tick(PERIOD.total_seconds())
    found = janitor(world)
    assert found is not None
    found["metadata"]["deletionTimestamp"] = "2026-01-05T12:00:00Z"
    assert not look(world).delete
    del found["metadata"]["deletionTimestamp"]
    (ref,) = look(world).delete
    assert ref.uid == found["metadata"]["uid"]


@pytest.mark.parametrize("phase", ["Pending", "Lost"])
def test_claim_without_a_volume_is_left_alone(phase: str) -> None:
    world = fresh()
    world.add_claim("finetune-workspace", phase)
    assert look(world) == Decision()


def test_claim_that_is_going_is_left_alone() -> None:
    world = fresh()
    claim = world.get("PersistentVolumeClaim", NAMESPACE, "finetune-workspace")
    assert claim is not None
    claim["metadata"]["deletionTimestamp"] = "2026-01-05T12:00:00Z"
    assert look(world) == Decision()


def test_namespace_without_a_workspace_has_nothing_to_remove() -> None:
    assert look(World()) == Decision()


def test_every_workspace_is_looked_at_once_after_a_start() -> None:
    world = fresh()
    assert list(workspace_keys(world, SETTINGS)) == [workspace_key(world.job)]


def test_list_for_a_thousand_jobs_fits_into_an_annotation() -> None:
    keep = [f"jobs/{number:08x}" for number in range(1000)]
    keep += [f"artifacts/{'x' * 63}-{number:08x}" for number in range(1000)]
    assert len(format_keep_list(keep)) < 128 * 1024
    job = build_janitor_job(NAMESPACE, "uid", keep, frozenset(), World().now, SETTINGS)
    assert parse_keep_list(job) == set(keep)


def test_artifact_that_a_running_janitor_does_not_know_waits_for_it() -> None:
    world = fresh()
    assert check_janitor(world, NAMESPACE, [OLD_URI], SETTINGS) is None
    look(world)
    stall = check_janitor(world, NAMESPACE, ["hf://a/b", OLD_URI], SETTINGS)
    assert stall is not None
    assert stall.reason == "WaitingForJanitor"
    assert OLD in stall.message
    own = f"pvc://finetune-workspace/artifacts/glossary-{JOB_UID[:8]}"
    assert check_janitor(world, NAMESPACE, [own], SETTINGS) is None
    world.end_job(JANITOR, "Complete")
    assert check_janitor(world, NAMESPACE, [OLD_URI], SETTINGS) is None


def test_job_that_names_such_an_artifact_says_what_it_waits_for() -> None:
    world = fresh()
    look(world)
    other = job_manifest(model={"uri": OLD_URI})
    other["metadata"] |= {"uid": OTHER_UID}
    forget(world)
    look(world)
    world.put(other)
    world.settle()
    assert world.condition("Stalled")["reason"] == "WaitingForJanitor"
    world.end_job(JANITOR, "Complete")
    world.settle()
    assert world.get("Job", NAMESPACE, "glossary-prepare-1") is not None


@pytest.mark.parametrize("seconds", [0, 60])
def test_looking_twice_asks_for_nothing_new(seconds: int) -> None:
    world = fresh()
    look(world)
    world.tick(seconds)
    decision = look(world)
    assert (decision.create, decision.apply, decision.delete) == ((), (), ())


def test_retention_is_told_to_the_janitor() -> None:
    world = fresh()
    look(world, Settings("t", "s", model_retention_days=7))
    found = janitor(world)
    assert found is not None
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert "--model-retention-days=7" in container["args"]
    assert "--claim=" + _claim_uid(world) in container["args"]
    assert timedelta(seconds=found["spec"]["activeDeadlineSeconds"]) < AGAIN


def _claim_uid(world: World) -> str:
    claim = world.get("PersistentVolumeClaim", NAMESPACE, "finetune-workspace")
    assert claim is not None
    return str(claim["metadata"]["uid"])
