"""What stays in a workspace, and when a janitor removes the rest."""

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.decision import JOB_UID_LABEL, Decision, Settings
from finetune_operator.names import model_path
from finetune_operator.resources.janitor import (
    LIST_SECONDS,
    MARGIN_SECONDS,
    build_janitor_job,
    format_keep_list,
    parse_keep_list,
)
from finetune_operator.workspaces.plan import (
    AFTER_FAILURE,
    FIRST_AFTER,
    PERIOD,
    RECHECK,
    REPEAT_AFTER,
    SPACING,
    STUCK_AFTER,
    check_janitor,
    list_needed,
    workspace_key,
    workspace_keys,
)

from tests.unit.jobs.world import JOB_UID, NAMESPACE, SETTINGS, World, job_manifest
from tests.unit.workspaces.world import (
    ENDED,
    JANITOR,
    OLD,
    OLD_URI,
    OTHER_UID,
    add_endpoint,
    clean,
    forget,
    fresh,
    janitor,
    kept,
    reconcile,
)


def test_jobs_keep_their_folders_whether_they_have_ended_or_not() -> None:
    world = fresh()
    assert f"jobs/{JOB_UID[:8]}" in list_needed(world, NAMESPACE, SETTINGS)
    world.replace_status(world.job, {"conditions": ENDED})
    assert set(list_needed(world, NAMESPACE, SETTINGS)) == {f"jobs/{JOB_UID[:8]}"}


def test_unfinished_job_keeps_its_models() -> None:
    reward = {"rewardModel": {"uri": "hf://acme/judge", "revision": "v1"}}
    world = World(job_manifest(objective="GRPO", grpo=reward))
    keep = set(list_needed(world, NAMESPACE, SETTINGS))
    assert model_path("pvc://assets/models/smol", None) in keep
    assert model_path("hf://acme/judge", "v1") in keep


@pytest.mark.parametrize("kind", ["Pod", "Job"])
def test_child_of_a_deleted_job_keeps_its_folder(kind: str) -> None:
    world = fresh()
    forget(world)
    meta = {"name": "late", "namespace": NAMESPACE, "labels": {JOB_UID_LABEL: OTHER_UID}}
    world.load({"kind": kind, "metadata": meta})
    assert set(list_needed(world, NAMESPACE, SETTINGS)) == {f"jobs/{OTHER_UID[:8]}"}


def test_endpoint_keeps_the_artifact_of_every_revision() -> None:
    world = fresh()
    newer = "pvc://finetune-workspace/artifacts/newer-00000000"
    add_endpoint(world, newer, newer, OLD_URI, "pvc://elsewhere/artifacts/a-00000000")
    keep = {
        each for each in list_needed(world, NAMESPACE, SETTINGS) if each.startswith("artifacts")
    }
    assert keep == {"artifacts/newer-00000000", OLD}


def test_endpoint_keeps_the_model_that_it_follows_before_and_after_there_is_a_revision() -> None:
    world = fresh()
    job = {"name": "older", "uid": OTHER_UID, "createdAt": "2026-01-05T12:00:00Z"}
    meta = {"name": "bot", "namespace": NAMESPACE, "uid": "endpoint"}
    status = {"latest": {"job": job, "uri": OLD_URI, "digest": "sha256:0"}}
    world.load({"kind": "ModelEndpoint", "metadata": meta, "spec": {}, "status": status})
    assert OLD in list_needed(world, NAMESPACE, SETTINGS)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"uri": OLD_URI}},
        {"model": {"uri": f"{OLD_URI}/"}},
        {"model": {"uri": "hf://acme/tiny", "adapter": {"uri": OLD_URI}}},
        {"objective": "GRPO", "grpo": {"rewardModel": {"uri": OLD_URI}}},
        {"dataset": {"train": [{"uri": f"{OLD_URI}/rows.jsonl"}]}},
        {"dataset": {"train": [{"uri": "s3://a/b"}], "validation": {"uri": f"{OLD_URI}/b"}}},
    ],
)
def test_artifact_stays_for_a_job_that_starts_from_it_until_that_has_ended(
    changes: dict[str, Any],
) -> None:
    world = World(job_manifest(**changes))
    assert OLD in list_needed(world, NAMESPACE, SETTINGS)
    world.replace_status(world.job, {"conditions": ENDED})
    assert OLD not in list_needed(world, NAMESPACE, SETTINGS)


def test_the_first_janitor_runs_soon_after_the_first_job() -> None:
    world = World()
    world.settle()
    for _ in range(2):
        decision = reconcile(world)
        assert not decision.create
        assert decision.requeue_after == FIRST_AFTER.total_seconds()
    world.tick(FIRST_AFTER.total_seconds())
    decision = reconcile(world)
    assert [each["metadata"]["name"] for each in decision.create] == [JANITOR]
    assert f"jobs/{JOB_UID[:8]}" in kept(world)
    assert timedelta(seconds=LIST_SECONDS) + FIRST_AFTER < timedelta(seconds=MARGIN_SECONDS)


def test_nothing_is_due_while_everything_is_needed() -> None:
    world = fresh()
    clean(world)
    decision = reconcile(world)
    assert not decision.create
    assert not decision.delete
    assert not decision.apply
    assert decision.requeue_after == PERIOD.total_seconds()


def test_a_deleted_job_triggers_a_janitor_whose_list_lacks_it() -> None:
    world = fresh()
    clean(world)
    world.tick(SPACING.total_seconds())
    forget(world)
    assert reconcile(world).delete
    reconcile(world)
    assert kept(world) == {f"-jobs/{JOB_UID[:8]}"}, "it is known to be gone, however young"


def test_a_job_deleted_before_the_first_janitor_triggers_it() -> None:
    world = World()
    world.settle()
    reconcile(world)
    assert janitor(world) is None
    forget(world)
    reconcile(world)
    assert kept(world) == {f"-jobs/{JOB_UID[:8]}"}


def test_the_last_pod_of_a_deleted_job_is_waited_for() -> None:
    world = fresh()
    clean(world)
    world.remove("FineTuneJob", "glossary")
    world.tick(SPACING.total_seconds())
    decision = reconcile(world)
    assert not decision.delete
    assert decision.requeue_after == RECHECK, "no event enqueues the key when it is gone"
    forget(world)
    assert reconcile(world).delete


def test_a_job_created_and_deleted_between_two_janitors_is_cleaned_up() -> None:
    world = fresh()
    clean(world)
    other = job_manifest()
    other["metadata"] |= {"name": "short", "uid": OTHER_UID}
    world.load(other)
    reconcile(world)
    world.remove("FineTuneJob", "short")
    world.tick(SPACING.total_seconds())
    assert reconcile(world).delete, "the ledger records it, also for an operator that restarted"


def test_a_dropped_revision_triggers_a_janitor() -> None:
    world = fresh()
    add_endpoint(world, "pvc://finetune-workspace/artifacts/newer-00000000", OLD_URI)
    clean(world)
    world.tick(SPACING.total_seconds())
    assert not reconcile(world).delete
    add_endpoint(world, "pvc://finetune-workspace/artifacts/newer-00000000")
    assert reconcile(world).delete


def test_the_end_of_a_job_alone_triggers_none() -> None:
    world = fresh()
    clean(world)
    world.tick(SPACING.total_seconds())
    world.replace_status(world.job, {"conditions": ENDED})
    assert not reconcile(world).delete, "its model stays for a while, its folder as long as the job"


def test_another_janitor_follows_after_the_grace_period_of_artifacts() -> None:
    world = fresh()
    clean(world)
    world.tick(SPACING.total_seconds())
    forget(world)
    reconcile(world)
    clean(world)
    assert reconcile(world).requeue_after == REPEAT_AFTER.total_seconds()
    world.tick(REPEAT_AFTER.total_seconds())
    assert reconcile(world).delete
    clean(world)
    assert reconcile(world).requeue_after == PERIOD.total_seconds()


def test_janitors_are_spaced_however_fast_jobs_are_deleted() -> None:
    world = fresh()
    clean(world)
    forget(world)
    decision = reconcile(world)
    assert not decision.delete
    assert decision.requeue_after == SPACING.total_seconds()


def test_running_janitor_is_left_alone() -> None:
    world = fresh()
    reconcile(world)
    forget(world)
    world.tick(SPACING.total_seconds())
    decision = reconcile(world)
    assert not decision.create
    assert not decision.delete


def test_a_job_deleted_while_a_janitor_runs_triggers_the_next() -> None:
    world = fresh()
    reconcile(world)
    forget(world)
    world.end_job(JANITOR, "Complete")
    world.tick(SPACING.total_seconds())
    assert reconcile(world).delete


def test_failed_janitor_is_followed_by_another_one_later() -> None:
    world = fresh()
    clean(world, "Failed")
    assert reconcile(world).requeue_after == AFTER_FAILURE.total_seconds()
    world.tick(AFTER_FAILURE.total_seconds())
    assert reconcile(world).delete


def test_a_janitor_that_never_starts_is_created_again_with_a_new_list() -> None:
    world = fresh()
    reconcile(world)
    world.tick(STUCK_AFTER.total_seconds())
    assert reconcile(world).delete


def test_old_janitor_is_deleted_by_its_uid_and_not_twice() -> None:
    world = fresh()
    clean(world)
    world.tick(PERIOD.total_seconds())
    found = janitor(world)
    assert found is not None
    world.mark_terminating(found)
    assert not reconcile(world).delete
    world.load(found)
    (ref,) = reconcile(world).delete
    assert ref.uid == found["metadata"]["uid"]


@pytest.mark.parametrize("phase", ["Pending", "Lost"])
def test_claim_without_a_volume_is_left_alone(phase: str) -> None:
    world = fresh()
    world.add_claim("finetune-workspace", phase)
    assert reconcile(world) == Decision()


def test_a_claim_that_is_being_deleted_is_left_alone() -> None:
    world = fresh()
    claim = world.get("PersistentVolumeClaim", NAMESPACE, "finetune-workspace")
    assert claim is not None
    world.mark_terminating(claim)
    assert reconcile(world) == Decision()


def test_namespace_without_a_workspace_has_nothing_to_remove() -> None:
    assert reconcile(World()) == Decision()


def test_every_workspace_is_enqueued_once_after_a_start() -> None:
    world = fresh()
    assert list(workspace_keys(world, SETTINGS)) == [workspace_key(world.job)]


def test_list_for_a_thousand_jobs_fits_into_an_annotation() -> None:
    keep = [f"jobs/{number:08x}" for number in range(1000)]
    keep += [f"artifacts/{'x' * 63}-{number:08x}" for number in range(1000)]
    assert len(format_keep_list(keep)) < 128 * 1024
    job = build_janitor_job(NAMESPACE, "uid", keep, frozenset(), World().now, SETTINGS)
    assert parse_keep_list(job) == set(keep)


def test_an_artifact_that_a_running_janitors_list_lacks_waits_for_it() -> None:
    world = fresh()
    assert check_janitor(world, NAMESPACE, [OLD_URI], SETTINGS) is None
    reconcile(world)
    stalled = check_janitor(world, NAMESPACE, ["hf://a/b", OLD_URI], SETTINGS)
    assert stalled is not None
    assert stalled.reason == "WaitingForJanitor"
    assert OLD in stalled.message
    own = f"pvc://finetune-workspace/artifacts/glossary-{JOB_UID[:8]}"
    assert check_janitor(world, NAMESPACE, [own], SETTINGS) is None
    world.end_job(JANITOR, "Complete")
    assert check_janitor(world, NAMESPACE, [OLD_URI], SETTINGS) is None


def test_a_job_that_names_such_an_artifact_shows_what_it_waits_for() -> None:
    world = fresh()
    reconcile(world)
    other = job_manifest(model={"uri": OLD_URI})
    other["metadata"] |= {"uid": OTHER_UID}
    forget(world)
    reconcile(world)
    world.load(other)
    world.settle()
    assert world.condition("Stalled")["reason"] == "WaitingForJanitor"
    world.end_job(JANITOR, "Complete")
    world.settle()
    assert world.get("Job", NAMESPACE, "glossary-prepare-1") is not None


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_second_reconcile_writes_nothing(seconds: int) -> None:
    world = fresh()
    reconcile(world)
    world.tick(seconds)
    decision = reconcile(world)
    assert (decision.create, decision.apply, decision.delete) == ((), (), ())


def test_the_janitor_gets_the_retention() -> None:
    world = fresh()
    reconcile(world, Settings("t", "s", model_retention_days=7))
    found = janitor(world)
    assert found is not None
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert "--model-retention-days=7" in container["args"]
    assert "--claim=" + _claim_uid(world) in container["args"]
    assert timedelta(seconds=found["spec"]["activeDeadlineSeconds"]) < REPEAT_AFTER


def _claim_uid(world: World) -> str:
    claim = world.get("PersistentVolumeClaim", NAMESPACE, "finetune-workspace")
    assert claim is not None
    return str(claim["metadata"]["uid"])
