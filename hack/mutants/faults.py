"""The ways in which the operator is broken: sentence, file, original text, replacement.

The text must occur in its file exactly once, so a fault cannot outlive the code that it is about
unnoticed. `suite` is what has to fail: the cheapest tests that hold the promise.
"""

from __future__ import annotations

from dataclasses import dataclass

JOBS = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests/unit/jobs")
WORKSPACES = (*JOBS[:-1], "tests/unit/workspaces")
PROFILES = (*JOBS[:-1], "tests/unit/acceleratorprofiles")
RESOURCES = (*JOBS[:-1], "tests/unit/resources", "tests/unit/planner", "tests/unit/jobs")
ENGINE = (*JOBS[:-1], "tests/unit/engine")
ENDPOINTS = (*JOBS[:-1], "tests/unit/endpoints")
FENCE = (*JOBS[:-1], "tests/api/engine/test_fence.py")
LEASE = (*JOBS[:-1], "tests/api/engine/test_leader_election.py")
LASTING = (*JOBS[:-1], "tests/api/engine/test_faults.py", "-k", "cannot_be_created")
CONTROLLERS = (*JOBS[:-1], "tests/unit/test_controllers.py")
SIMULATION = ("-m", "tests.sim", "--seed", "20261121", "--histories", "600")


@dataclass(frozen=True)
class Fault:
    """One way to be wrong."""

    name: str
    file: str
    """Below operator/finetune_operator."""
    right: str
    wrong: str
    suite: tuple[str, ...] = JOBS


FAULTS = (
    Fault(
        "children have no owner",
        "resources/metadata.py",
        '            "ownerReferences": [build_owner_reference(self.job)],\n',
        "",
        RESOURCES,
    ),
    Fault(
        "the next attempt has the number of the one before",
        "jobs/stage_runner.py",
        "_launch(ctx, draft, stage, attempt.number + 1)",
        "_launch(ctx, draft, stage, attempt.number)",
    ),
    Fault(
        "attempts share one name",
        "names.py",
        'return f"{job_name}-{stage}-{attempt}"',
        'return f"{job_name}-{stage}-1"',
    ),
    Fault(
        "a disruption counts as a crash",
        "jobs/policies/retry.py",
        'if outcome.kind == "Crashed":\n        if restarts',
        'if outcome.kind in ("Crashed", "Disrupted"):\n        if restarts',
    ),
    Fault(
        "a crash does not count",
        "jobs/policies/retry.py",
        "        restarts += 1\n",
        "        restarts += 0\n",
    ),
    Fault(
        "one failure counts at every reconcile",
        "jobs/stage_runner.py",
        "if recorded_failure(draft.status, attempt) is None:\n        if not _record",
        "if True:\n        if not _record",
    ),
    Fault(
        "one restart too many",
        "jobs/policies/retry.py",
        "restarts >= max_restarts",
        "restarts > max_restarts",
    ),
    Fault(
        "back-off has no bound",
        "jobs/policies/retry.py",
        "min(LONGEST_DELAY, FIRST_DELAY * 2 ** (min(max(1, restarts), 10) - 1))",
        "FIRST_DELAY * 2 ** (max(1, restarts) - 1)",
    ),
    Fault(
        "attempts follow each other at once",
        "jobs/stage_runner.py",
        "if left <= 0 and attempt.job is None and has_ended:",
        "if attempt.job is None and has_ended:",
    ),
    Fault(
        "the next attempt starts alongside the one before",
        "jobs/stage_runner.py",
        "if left <= 0 and attempt.job is None and has_ended:",
        "if left <= 0 and has_ended:",
    ),
    Fault(
        "the next attempt starts alongside pods that were given up",
        "jobs/stage_runner.py",
        "has_ended = reason not in (GANG_UNSCHEDULABLE, LIFTED) or not attempt.may_run(ctx.now)",
        "has_ended = True",
    ),
    Fault(
        "the Job of an ended attempt stays",
        "jobs/stage_runner.py",
        "if attempt.job is not None and (left <= 0 or",
        "if False and (left <= 0 or",
    ),
    Fault(
        "a job that has ended runs on",
        "jobs/plan.py",
        "    if is_terminal(job):\n"
        "        return clean_up_terminal_job(job, view, settings, now)\n",
        "",
    ),
    Fault(
        "suspend is not asked about",
        "jobs/plan.py",
        "    if spec.suspend:\n",
        "    if False:\n",
    ),
    Fault(
        "stages run in another order",
        "jobs/plan.py",
        "POD_STAGES = (PREPARE, TRAIN, EVALUATE, EXPORT)",
        "POD_STAGES = (PREPARE, TRAIN, EXPORT, EVALUATE)",
    ),
    Fault(
        "the deadline runs while a job is suspended",
        "jobs/policies/active_deadline.py",
        "left = deadline + status.suspended_seconds - ",
        "left = deadline - ",
    ),
    Fault(
        "a late job keeps its gang",
        "jobs/policies/ttl_after_finished.py",
        "return Decision(delete=tuple(delete),",
        "return Decision(delete=tuple(delete[len(live) :]),",
    ),
    Fault(
        "the time to live deletes any object of that name",
        "jobs/policies/ttl_after_finished.py",
        "delete.append(object_ref(job))",
        'delete.append(object_ref({**job, "metadata": {**job["metadata"], "uid": None}}))',
    ),
    Fault(
        "the time to live is over at once",
        "jobs/policies/ttl_after_finished.py",
        "return ended + timedelta(seconds=seconds)",
        "return ended",
    ),
    Fault(
        "one failure excludes a node",
        "jobs/policies/node_exclusion.py",
        "EXCLUDED_FROM = 2",
        "EXCLUDED_FROM = 1",
    ),
    Fault(
        "no node is ever excluded",
        "jobs/attempt_children.py",
        "excluded_nodes=list_excluded_nodes(status.nodes)",
        "excluded_nodes=()",
    ),
    Fault(
        "an exclusion is never lifted",
        "jobs/policies/node_exclusion.py",
        "if not avoided or not waiting or now - min(waiting) < patience:",
        "if True:",
    ),
    Fault(
        "a sidecar keeps a stage from ending",
        "jobs/pod_status.py",
        "    if has_sidecar_left(pod):",
        "    if False:",
    ),
    Fault(
        "an outage of a source costs restarts",
        "jobs/policies/source_outage.py",
        'if outcome.kind != "Crashed" or',
        "if True or",
    ),
    Fault(
        "a waiting gang holds on to its devices",
        "jobs/policies/waiting_gang.py",
        "    if not since or now - min(since) < patience:",
        "    if True:",
    ),
    Fault(
        "a gang gives its devices back only when the next attempt is due",
        "jobs/stage_runner.py",
        "(left <= 0 or reason == GANG_UNSCHEDULABLE)",
        "left <= 0",
    ),
    Fault(
        "a pod has ended before its final phase",
        "jobs/pod_status.py",
        '    return any(not state.get("terminated") for state in states)',
        "    return True",
    ),
    Fault(
        "a scale-up is a stall",
        "jobs/stall_checks.py",
        "since + patience if now - since < patience else None",
        "None",
    ),
    Fault(
        "a rank without a peer counts as a crash",
        "jobs/attempt_outcome.py",
        "if failure.reason in NO_PEER and (absent := _describe_absent_peer(attempt)):",
        "if False:",
    ),
    Fault(
        "resuming does not forgive nodes",
        "jobs/suspend.py",
        '        "nodes": [],\n',
        "",
    ),
    Fault(
        "a suspended job keeps its devices",
        "jobs/stage_runner.py",
        "        draft.delete.append(object_ref(attempt.job))\n    state",
        "        pass\n    state",
    ),
    Fault(
        "a job is called suspended while its pods still save",
        "jobs/suspend.py",
        "if status.suspended_at is None and _may_run(attempt, now):",
        "if False:",
    ),
    Fault(
        "half of a gang that ended well is a success",
        "jobs/attempt_outcome.py",
        "if len(attempt.pods) < attempt.nodes:\n        return None\n    if any",
        "if not attempt.pods:\n        return None\n    if any",
    ),
    Fault(
        "an exit of 0 without a result is a success of the leader alone",
        "jobs/attempt_outcome.py",
        'if any(pod.phase != "Succeeded" for pod in attempt.pods):',
        'if attempt.pods[0].phase != "Succeeded":',
    ),
    Fault(
        "another stage's result is taken for this one's",
        "jobs/attempt_outcome.py",
        ' and result.outcome == "Succeeded" and result.stage == attempt.stage:',
        ":",
    ),
    Fault(
        "a saved gang is a crash",
        "jobs/attempt_outcome.py",
        'elif pod.phase == "Failed" and pod.exit_code == ExitCode.PREEMPTED:',
        "elif False:",
    ),
    Fault(
        "the last thing that went wrong is the cause",
        "jobs/attempt_outcome.py",
        "causes = sorted(_list_causes(attempt, now), key=lambda each: (each.at,",
        "causes = sorted(_list_causes(attempt, now), reverse=True, key=lambda each: (each.at,",
    ),
    Fault(
        "a lost peer is taken for the cause",
        "jobs/attempt_outcome.py",
        "return cause.failure.reason == PEER_LOST",
        "return False",
    ),
    Fault(
        "a lost node is waited for",
        "jobs/attempt_outcome.py",
        "        or _find_lost_node(attempt, now)\n",
        "",
    ),
    Fault(
        "an error of the user is tried again",
        "jobs/stage_runner.py",
        'if isinstance(outcome, SucceededAttempt) or outcome.kind == "UserError":',
        "if isinstance(outcome, SucceededAttempt):",
    ),
    Fault(
        "run.json is built again for a retry",
        "resources/configmap.py",
        "if before is not None:",
        "if False:",
    ),
    Fault(
        "an upgrade changes the image of a running job's next attempt",
        "jobs/attempt_children.py",
        "image = (previous.image if previous else None) or ctx.settings.trainer_image",
        "image = ctx.settings.trainer_image",
    ),
    Fault(
        "the spec is not frozen when the first stage is launched",
        "jobs/stage_runner.py",
        "    draft.update(started_at=draft.status.started_at or ctx.timestamp)\n",
        "",
    ),
    Fault(
        "another job's child is taken for ours",
        "jobs/stage_runner.py",
        "    draft.stalled = children.name_conflict\n",
        "    draft.stalled = None\n",
    ),
    Fault(
        "the grace period is the same for every checkpoint",
        "jobs/stages/train.py",
        "math.ceil(max(LEAST_GRACE, min(MOST_GRACE, GRACE_MARGIN * seconds + STEP_SECONDS)))",
        "LEAST_GRACE",
    ),
    Fault(
        "the planner does not check the free space of the workspace",
        "planner/disk.py",
        "if workspace is None or need <= workspace.free_bytes:",
        "if True:",
        RESOURCES,
    ),
    Fault(
        "a revision that gave a wrong answer is tried again",
        "endpoints/failure.py",
        "if reason not in RETRIED or failures >= len(RETRY_DELAYS):",
        "if failures >= len(RETRY_DELAYS):",
        ENDPOINTS,
    ),
    Fault(
        "a revision that crashes is tried again indefinitely",
        "endpoints/revisions.py",
        "    return newest.record.failed_before + 1\n",
        "    return 0\n",
        ENDPOINTS,
    ),
    Fault(
        "the oldest refusal of a pod is reported",
        "jobs/pod_refusal.py",
        "max(refusals, default",
        "min(refusals, default",
    ),
    Fault(
        "the janitor removes what endpoints serve",
        "workspaces/plan.py",
        "        yield from artifact_folders(_list_served_uris(endpoint), settings)\n",
        "        yield from ()\n",
        WORKSPACES,
    ),
    Fault(
        "the janitor removes what an endpoint follows",
        "workspaces/plan.py",
        '    yield str((status.get("latest") or {}).get("uri"))\n',
        "",
        WORKSPACES,
    ),
    Fault(
        "the job that exported last is followed, however old it is",
        "exported_models.py",
        "return max(models, key=lambda model: compute_age(model.job), default=None)",
        "return models[0] if models else None",
        ENDPOINTS,
    ),
    Fault(
        "an endpoint goes back to an older job when the latest one is deleted",
        "exported_models.py",
        "        models.append(recorded)\n",
        "        pass\n",
        ENDPOINTS,
    ),
    Fault(
        "a model is followed that its job may still keep back",
        "exported_models.py",
        "if is_handed_over(job) and (model := _read_model(job))",
        "if (model := _read_model(job))",
        ENDPOINTS,
    ),
    Fault(
        "the probe of a job is not asked",
        "endpoints/observe.py",
        "ServedModel(self.latest.uri, self.latest.digest, self.latest.probe)",
        "ServedModel(self.latest.uri, self.latest.digest, None)",
        ENDPOINTS,
    ),
    Fault(
        "a job that hands its model over wakes no endpoint",
        "controllers.py",
        "if is_handed_over(job) and (endpoint := find_endpoint_name(job)):",
        "if False and (endpoint := find_endpoint_name(job)):",
        CONTROLLERS,
    ),
    Fault(
        "a job hands its model over to an endpoint that is pinned to another one",
        "jobs/stages/serve.py",
        "return not pinned or pinned == {",
        "return True or pinned == {",
    ),
    Fault(
        "a job waits although its endpoint has the model of a younger one",
        "jobs/stages/serve.py",
        "latest = None if pinned else served.latest",
        "latest = None",
    ),
    Fault(
        "the janitor removes the folders of living jobs",
        "workspaces/plan.py",
        '        yield job_entry(job["metadata"]["uid"])\n',
        "",
        WORKSPACES,
    ),
    Fault(
        "the time of an artifact goes on during a reference that no janitor has seen",
        "resources/janitor.py",
        "for entry in set(gone) - jobs)",
        "for entry in set())",
        WORKSPACES,
    ),
    Fault(
        "a job's own retention is ignored",
        "jobs/stages/export.py",
        "    retention = own or ctx.settings.artifact_retention\n",
        "    retention = ctx.settings.artifact_retention\n",
    ),
    Fault(
        "an operator of some namespaces counts what uses a profile",
        "acceleratorprofiles/plan.py",
        "not settings.watches_all_namespaces or ",
        "",
        PROFILES,
    ),
    Fault(
        "jobs that have ended use a profile",
        "acceleratorprofiles/use.py",
        "sum(not use.has_ended for use, _ in users)",
        "len(users)",
        PROFILES,
    ),
    Fault(
        "conditions change their time at every reconcile",
        "jobs/reporting.py",
        "since = old.last_transition_time if old and old.status == value else timestamp",
        "since = timestamp",
    ),
    Fault(
        "a silent rank is waited for without end",
        "jobs/policies/stalled_rank.py",
        "if not progress.stalled or first is None or now - first < patience:",
        "if True:",
    ),
    Fault(
        "the requeue is forgotten",
        "jobs/plan.py",
        "        requeue_after=draft.requeue_after,\n",
        "",
        SIMULATION,
    ),
    Fault(
        "writes do not carry the resourceVersion of the object that was read",
        "engine/writer.py",
        'fenced = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, **patch}',
        "fenced = dict(patch)",
        SIMULATION,
    ),
    Fault(
        "a Lease without a duration is taken from a live leader",
        "engine/leader_election.py",
        "max(duration, self._timing.lease_duration)",
        "duration",
        LEASE,
    ),
    Fault(
        "a child that cannot be created for hours is never reported",
        "engine/reconciler.py",
        "return self._child_failures[key] >= REPORT_AFTER_FAILURES",
        "return False",
        LASTING,
    ),
    Fault(
        "children are written without a fence",
        "engine/reconciler.py",
        "if writes and not changed:",
        "if False:",
        FENCE,
    ),
    Fault(
        "a deleted pod's termination message is not kept",
        "engine/event_handlers.py",
        "if _is_ended_stage_pod(manifest) and self.on_update(manifest):",
        "if False:",
        ENGINE,
    ),
    Fault(
        "a checkpoint saved after the first pod of a gang had ended is not reported",
        "jobs/stage_runner.py",
        "    elif _keep_saved_checkpoint(draft, attempt):\n",
        "    elif False:\n",
    ),
    Fault(
        "an old event overwrites a newer object",
        "engine/cache.py",
        "return version_number(manifest) > version_number(old)",
        "return True",
        ENGINE,
    ),
)
