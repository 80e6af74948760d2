"""A stage as a sequence of attempts: launch one, watch it, accept its result or try again.

What is to be done is decided by attempt_outcome.py, the policies and the stages; this module
applies it to the draft of the status.
"""

from datetime import timedelta
from functools import partial

from finetune_api.failure import Failure
from finetune_api.finetunejob import StageStatus

from finetune_operator.jobs.attempt_children import (
    build_children,
    build_missing_children,
)
from finetune_operator.jobs.attempt_outcome import (
    JOB_DELETED,
    FailedAttempt,
    Outcome,
    SucceededAttempt,
    outcome_of,
)
from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.observe import Attempt, PodFacts
from finetune_operator.jobs.pod_refusal import refusal_query
from finetune_operator.jobs.policies.node_exclusion import LIFTED, check_exclusion
from finetune_operator.jobs.policies.retry import (
    LEAST_DELAY,
    decide_retry,
    find_saved_checkpoint,
    recorded_failure,
)
from finetune_operator.jobs.policies.source_outage import excuse_outage
from finetune_operator.jobs.policies.stalled_rank import check_stalled_rank
from finetune_operator.jobs.policies.suspect_node import crash_if_suspected
from finetune_operator.jobs.policies.waiting_gang import GANG_UNSCHEDULABLE, check_waiting_gang
from finetune_operator.jobs.progress import (
    checkpoint_status,
    clear_running_fields,
    initial_progress,
    job_progress,
    poll_interval,
    progress_at_step,
    progress_message,
    progress_request,
    read_progress,
    request_id,
)
from finetune_operator.jobs.stages.base import PodStage
from finetune_operator.jobs.stages.prepare import user_claims
from finetune_operator.jobs.stages.serve import (
    RolloutInProgress,
    endpoint_name,
    find_endpoint,
    roll_out,
    takes_model,
)
from finetune_operator.jobs.stall_checks import (
    QUERY_PATIENCE,
    find_orphans,
    find_stall,
    has_waited_for_pods,
)
from finetune_operator.jobs.status_messages import format_attempt, retry_message, running_message
from finetune_operator.jobs.suspend import SUSPENDED, Stopping, check_suspended
from finetune_operator.manifest import format_time, object_ref, parse_time
from finetune_operator.stalled import Stalled

RECHECK = 5.0
"""Seconds after which a job that waits for the cluster is reconciled without an event."""
CONFLICT_RECHECK = 1.0
"""Seconds after which a name that another job's child holds is tried again."""


def run_stage(ctx: Context, draft: Draft, stage: PodStage) -> bool:
    """Bring a stage as far as it can get now; True when it has succeeded."""
    stage_status = draft.stage(stage.name)
    if stage_status.state == "Succeeded":
        _end_sidecars(ctx, draft, stage)
        return True
    attempt = _find_current(ctx, draft, stage_status)
    if attempt is None:
        _launch(ctx, draft, stage, 1)
        return False
    outcome = _find_outcome(ctx, draft, stage, attempt) or _watch(ctx, draft, stage, attempt)
    if outcome is None:
        return False
    if isinstance(outcome, SucceededAttempt) or outcome.kind == "UserError":
        return _conclude(draft, stage, attempt, outcome)
    _retry(ctx, draft, stage, attempt, outcome)
    return False


def _end_sidecars(ctx: Context, draft: Draft, stage: PodStage) -> None:
    """Delete the Job of a stage that has succeeded if other containers of its pods run on."""
    attempt = ctx.observed.newest.get(stage.name)
    if attempt is not None and attempt.job is not None and attempt.has_sidecars_left:
        draft.delete.append(object_ref(attempt.job))


def suspend_stage(ctx: Context, draft: Draft, stage: PodStage) -> bool:
    """Stop a stage; True when it has succeeded, so that the caller continues with the next
    stage."""
    stage_status = draft.stage(stage.name)
    if stage_status.state == "Succeeded":
        _end_sidecars(ctx, draft, stage)
        return True
    attempt = _find_current(ctx, draft, stage_status)
    if attempt is None:
        _rest(ctx, draft, f"suspended before {stage.name}")
        return False
    outcome = _find_outcome(ctx, draft, stage, attempt)
    if isinstance(outcome, SucceededAttempt) or (outcome and outcome.kind == "UserError"):
        return _conclude(draft, stage, attempt, outcome)
    if outcome is not None:
        _keep_saved_checkpoint(draft, attempt)
        # Its Job is still there, so this crash is not the consequence of suspending.
        crashed = outcome.kind == "Crashed" and attempt.job is not None
        is_new = crashed and recorded_failure(draft.status, attempt) is None
        if is_new and not _record_failure(ctx, draft, stage, attempt, outcome):
            return False
    if attempt.job is not None:
        draft.delete.append(object_ref(attempt.job))
    state = check_suspended(draft.status, attempt, ctx.now)
    if isinstance(state, Stopping):
        draft.update(phase=stage.phase(attempt))
        draft.show(stage.name, state.message)
        draft.requeue_within(RECHECK)
        return False
    draft.update(failure=state.failure)
    draft.update_stage(stage.name, state="Pending", retry_at=None, message=state.stage_message)
    _rest(ctx, draft, state.message)
    return False


def run_serve(ctx: Context, draft: Draft) -> bool:
    """Roll the model out as far as possible now; True when the endpoint serves it."""
    stage_status = draft.stage("serve")
    if stage_status.state == "Succeeded":
        return True
    draft.update(phase="Deploying")
    draft.requeue_within(RECHECK)
    endpoint = find_endpoint(ctx)
    if endpoint is not None and takes_model(endpoint, draft.status):
        # The hand-over: the endpoint follows the job from now on, and `serve` is frozen.
        started_at = stage_status.started_at or ctx.timestamp
        draft.update_stage("serve", state="Running", attempt=1, started_at=started_at)
    state = roll_out(ctx, draft.status, endpoint)
    if isinstance(state, Stalled):
        draft.stalled = state
    elif isinstance(state, Failure):
        draft.fail("serve", state)
    elif isinstance(state, RolloutInProgress):
        draft.create.extend(state.create)
        draft.show("serve", state.message)
    else:
        draft.update(**state.facts, failure=None)
        draft.show("serve", state.message)
        draft.update_stage("serve", state="Succeeded", finished_at=ctx.timestamp)
        return True
    return False


def suspend_serve(ctx: Context, draft: Draft) -> bool:
    """Nothing of the job runs while its model is rolled out; True when it was rolled out."""
    if draft.stage("serve").state == "Succeeded":
        return True
    _rest(ctx, draft, f"suspended before endpoint {endpoint_name(ctx)} has taken the model")
    return False


def _find_current(ctx: Context, draft: Draft, stage: StageStatus) -> Attempt | None:
    """The newest attempt that has begun, recorded in the status; Jobs of older ones are deleted."""
    newest = ctx.observed.newest.get(stage.name)
    number = max(stage.attempt, newest.number if newest else 0)
    if number == 0:
        return None
    started_at = stage.started_at or ctx.timestamp
    draft.update_stage(stage.name, state="Running", attempt=number, started_at=started_at)
    draft.update(started_at=draft.status.started_at or started_at)
    for older in ctx.observed.attempts.get(stage.name, ()):
        if older.number < number and older.job is not None:
            draft.delete.append(object_ref(older.job))
    attempt = ctx.observed.find_attempt(stage.name, number)
    if attempt.config is not None:
        draft.update(plan=draft.status.plan or attempt.config.plan)
    return attempt


def _launch(ctx: Context, draft: Draft, stage: PodStage, number: int) -> None:
    """Create every child of an attempt that does not exist yet."""
    children = build_children(ctx, draft.status, stage, number)
    attempt = ctx.observed.find_attempt(stage.name, number) if number > 1 else None
    draft.update(phase=stage.phase(attempt))
    draft.requeue_within(RECHECK)
    if isinstance(children, Failure):
        draft.fail(stage.name, children)
        return
    if orphaned := find_orphans(ctx.observed, f"{stage.name} {number}", ctx.now):
        draft.stalled = orphaned
        return
    if isinstance(children, Stalled):
        draft.stalled = children
        return
    draft.update(plan=draft.status.plan or children.config.plan)
    draft.stalled = children.name_conflict
    if draft.stalled is not None:
        draft.requeue_within(CONFLICT_RECHECK)
        return
    draft.create.extend(children.missing)
    which = format_attempt(draft.status, stage.name, number) if number > 1 else ""
    draft.update(message=f"{stage.name} is starting{which}")
    # With `started_at` the spec is frozen, in the same write, before anything is made of it.
    draft.update(started_at=draft.status.started_at or ctx.timestamp)
    draft.update_stage(stage.name, retry_at=None)


def _find_outcome(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> Outcome | None:
    """How an attempt ended: by its pods, or as the status records it."""
    outcome = outcome_of(attempt, ctx.now, partial(stage.accept, ctx))
    if isinstance(outcome, FailedAttempt):
        outcome = crash_if_suspected(draft.status, attempt, outcome)
        outcome = excuse_outage(outcome, draft.stage(stage.name).started_at)
    recorded = recorded_failure(draft.status, attempt)
    if outcome is not None or recorded is None:
        return outcome
    if recorded.reason == JOB_DELETED and attempt.job is not None:
        # The Job exists: it was only missing from the cache.
        draft.update(failure=None)
        draft.update_stage(stage.name, retry_at=None)
        return None
    return FailedAttempt("Disrupted", ctx.now, recorded)


def _watch(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> FailedAttempt | None:
    """Show what the running attempt does or waits for; its outcome where it must be given up."""
    draft.requeue_within(RECHECK)
    draft.create.extend(build_missing_children(ctx, draft.status, stage, attempt))
    plan, progress = draft.status.plan, draft.status.progress
    if stage.name == "train" and plan and not (progress and progress.stage == "train"):
        draft.update(progress=initial_progress(plan))
    draft.update(phase=stage.phase(attempt), message=running_message(draft.status, attempt))
    patience = ctx.settings.scale_up_patience
    outcome = check_exclusion(
        ctx.observed, attempt, draft.status.nodes, patience, ctx.now
    ) or check_waiting_gang(ctx.observed, attempt, patience, ctx.now)
    if attempt.job is not None and has_waited_for_pods(attempt, QUERY_PATIENCE, ctx.now):
        draft.requests.append(refusal_query(attempt.job))
    leader = attempt.leader()
    if leader is not None and leader.phase == "Running":
        outcome = _poll_progress(ctx, draft, attempt, leader) or outcome
    draft.show(stage.name, draft.status.message)
    if outcome is None:
        claims = [ctx.settings.workspace_claim]
        if stage.name == "prepare":
            claims += user_claims(ctx.spec, ctx.settings.workspace_claim)
        failure = draft.status.failure
        if failure is not None and failure.reason == GANG_UNSCHEDULABLE:
            patience = timedelta(0)  # an earlier attempt has waited for it
        draft.stalled = find_stall(attempt, ctx.view, ctx.namespace, claims, patience, ctx.now)
    return outcome


def _poll_progress(
    ctx: Context, draft: Draft, attempt: Attempt, leader: PodFacts
) -> FailedAttempt | None:
    """Request the leader's progress and show its newest response; the outcome where a rank has been
    silent for too long."""
    if leader.ip is None:
        return None
    interval = poll_interval(ctx.settings.progress_interval, attempt.job_created(), ctx.now)
    draft.requests.append(progress_request(leader.uid, leader.ip, interval))
    draft.requeue_within(interval)
    response = ctx.view.http_response(request_id(leader.uid))
    reported = read_progress(response, attempt.stage, attempt.number)
    if reported is None:
        return None
    progress = job_progress(reported, draft.status.progress, ctx.now)
    checkpoint = checkpoint_status(reported, draft.status.checkpoint)
    message = progress_message(reported) or draft.status.message
    draft.update(progress=progress, checkpoint=checkpoint, message=message)
    return check_stalled_rank(attempt, reported, progress.stalled_since, ctx.now)


def _conclude(draft: Draft, stage: PodStage, attempt: Attempt, outcome: Outcome) -> bool:
    """Take over how a stage ended for good; True when the next one may begin."""
    if isinstance(outcome, FailedAttempt):
        draft.update(**(outcome.accepted.facts if outcome.accepted else {}))
        draft.fail(stage.name, outcome.failure)
        draft.update_stage(stage.name, finished_at=format_time(outcome.at))
        return False
    accepted = outcome.accepted
    draft.update(**accepted.facts, failure=None)
    draft.show(stage.name, accepted.message)
    at = format_time(outcome.at)
    draft.update_stage(stage.name, state="Succeeded", finished_at=at, retry_at=None)
    if accepted.refusal is None:
        return True
    draft.fail(stage.name, accepted.refusal.model_copy(update={"attempt": attempt.number}))
    return False


def _retry(
    ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, outcome: FailedAttempt
) -> None:
    """Bring a failed attempt as far towards the next one as possible now: record it, wait, delete
    its Job, launch the next one when that is gone. A gang that gives its devices back does so
    before it waits."""
    if recorded_failure(draft.status, attempt) is None:
        if not _record_failure(ctx, draft, stage, attempt, outcome):
            return
    elif _keep_saved_checkpoint(draft, attempt):
        message = retry_message(draft.status, stage.name, outcome, ctx.spec.max_restarts)
        draft.update_stage(stage.name, message=message)
    due = parse_time(draft.stage(stage.name).retry_at) or ctx.now
    left = (due - ctx.now).total_seconds()
    failure = recorded_failure(draft.status, attempt)
    # Nothing is wrong with the pods of an attempt that the operator gave up: until they have ended,
    # one that waits may get a node, and the gang train.
    reason = failure.reason if failure else None
    has_ended = reason not in (GANG_UNSCHEDULABLE, LIFTED) or not attempt.may_run(ctx.now)
    if left <= 0 and attempt.job is None and has_ended:
        _launch(ctx, draft, stage, attempt.number + 1)
        return
    draft.update(phase=stage.phase(attempt) if stage.name != "train" else "Queued")
    draft.requeue_within(left if left > 0 else LEAST_DELAY)
    if attempt.job is not None and (left <= 0 or reason == GANG_UNSCHEDULABLE):
        draft.delete.append(object_ref(attempt.job))
    draft.update(message=draft.stage(stage.name).message or draft.status.message)


def _record_failure(
    ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, outcome: FailedAttempt
) -> bool:
    """Record how an attempt ended, and when the next one begins; False where that ends the job."""
    _keep_saved_checkpoint(draft, attempt)
    decision = decide_retry(draft.status, ctx.spec.max_restarts, attempt, outcome)
    if isinstance(decision, Failure):
        draft.update(**(outcome.accepted.facts if outcome.accepted else {}))
        draft.fail(stage.name, decision)
        return False
    draft.update(
        failure=outcome.failure,
        restarts=decision.restarts,
        nodes=decision.nodes,
        suspected=decision.suspected,
        progress=clear_running_fields(draft.status.progress),
    )
    draft.show(stage.name, retry_message(draft.status, stage.name, outcome, ctx.spec.max_restarts))
    draft.update_stage(stage.name, retry_at=format_time(decision.at))
    return True


def _keep_saved_checkpoint(draft: Draft, attempt: Attempt) -> bool:
    """Whether the attempt saved a checkpoint that the status did not have."""
    checkpoint = find_saved_checkpoint(draft.status, attempt)
    if checkpoint is None:
        return False
    progress = progress_at_step(draft.status.progress, checkpoint.step)
    draft.update(checkpoint=checkpoint, progress=progress)
    return True


def _rest(ctx: Context, draft: Draft, message: str) -> None:
    """The job is suspended: nothing of it runs, and it waits for the user alone."""
    since = draft.status.suspended_at or ctx.timestamp
    progress = clear_running_fields(draft.status.progress)
    draft.update(phase=SUSPENDED, suspended_at=since, message=message, progress=progress)
    draft.requeue_after = None
