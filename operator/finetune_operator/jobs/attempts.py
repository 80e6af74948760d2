"""A stage as a row of attempts: launch, watch, accept, or try again.

An attempt counts as begun when its Job has been seen, not when it was asked for. Until then the
same attempt is asked for again, which is harmless as names are fixed; so neither a crash between
two API calls nor a cache that lags behind our own writes can start a second gang.
"""

from datetime import datetime, timedelta

from finetune_api.run import Failure, RunConfig

from finetune_operator.decision import Manifest, ObjectRef
from finetune_operator.jobs.conditions import time_text
from finetune_operator.jobs.ending import Ending, ending
from finetune_operator.jobs.observe import Attempt, PodFacts
from finetune_operator.jobs.prepare import user_claims
from finetune_operator.jobs.stage import Context, Draft, PodStage
from finetune_operator.jobs.stall import Stall, attempt_stall
from finetune_operator.names import child_name, master_host
from finetune_operator.progress import (
    ask_id,
    progress_ask,
    read_progress,
    shown,
    told,
    waiting_to_train,
)
from finetune_operator.resources.configmap import run_configmap
from finetune_operator.resources.identity import AttemptIdentity
from finetune_operator.resources.job import stage_job
from finetune_operator.resources.pod import PodShape
from finetune_operator.resources.pvc import workspace_claim
from finetune_operator.resources.service import rendezvous_service

FIRST_DELAY = 10.0
LONGEST_DELAY = 300.0
RECHECK = 5.0
"""Seconds after which a job that waits for the cluster is looked at without being told."""


def run_stage(ctx: Context, draft: Draft, stage: PodStage) -> bool:
    """Bring a stage as far as it can go now; True when it is done."""
    state = draft.stage(stage.name)
    if state.state == "Succeeded":
        return True
    newest = ctx.observed.newest(stage.name)
    seen = max(state.attempt, newest.number if newest else 0)
    if seen == 0:
        _launch(ctx, draft, stage, 1)
        return False
    started = state.started_at or time_text(ctx.now)
    draft.update_stage(stage.name, state="Running", attempt=seen, started_at=started)
    draft.update(started_at=draft.status.started_at or started)
    _delete_older(ctx, draft, stage, seen)
    attempt = ctx.observed.numbered(stage.name, seen)
    if attempt.config is not None:
        draft.update(plan=draft.status.plan or attempt.config.plan)
    over = ending(attempt, ctx.now) or _noted_ending(ctx, draft, attempt)
    if over is None:
        _watch(ctx, draft, stage, attempt)
        return False
    if over.kind == "Succeeded":
        return _succeed(ctx, draft, stage, attempt, over)
    if over.kind == "UserError":
        _refuse(ctx, draft, stage, over)
        return False
    _retry(ctx, draft, stage, attempt, over)
    return False


def _noted_ending(ctx: Context, draft: Draft, attempt: Attempt) -> Ending | None:
    """An attempt whose failure is in the status is over, even when its pods are gone since."""
    if not _noted(draft, attempt) or any(not pod.finished for pod in attempt.pods):
        return None
    return Ending("Disrupted", attempt.job_created() or ctx.now, None, draft.status.failure)


def _noted(draft: Draft, attempt: Attempt) -> bool:
    """Whether the status tells already that this attempt failed."""
    failure = draft.status.failure
    return failure is not None and (failure.stage, failure.attempt) == (
        attempt.stage,
        attempt.number,
    )


def _launch(ctx: Context, draft: Draft, stage: PodStage, number: int) -> None:
    """Ask for every child of an attempt that is not there yet; the Job comes last."""
    draft.update(
        phase=stage.phase(ctx.observed.numbered(stage.name, number) if number > 1 else None)
    )
    draft.wake(RECHECK)
    config = _config(ctx, draft, stage, number)
    if isinstance(config, Failure):
        draft.fail(stage.name, config)
        return
    shape = config if isinstance(config, Stall) else stage.shape(ctx, config)
    if isinstance(config, Stall) or isinstance(shape, Stall):
        draft.stall = config if isinstance(config, Stall) else shape  # type: ignore[assignment]
        return
    draft.update(plan=draft.status.plan or config.plan)
    children = _children(ctx, stage, config, shape)
    draft.stall = _taken(ctx, children)
    if draft.stall is not None:
        draft.wake(1.0)
        return
    if ctx.view.get("PersistentVolumeClaim", ctx.namespace, ctx.settings.workspace_claim) is None:
        draft.create.append(workspace_claim(ctx.namespace, ctx.settings))
    draft.create.extend(child for child in children if _cached(ctx, child) is None)
    again = f", attempt {number}" if number > 1 else ""
    draft.update(message=f"{stage.name} is starting{again}")


def _config(
    ctx: Context, draft: Draft, stage: PodStage, number: int
) -> RunConfig | Stall | Failure:
    """What the attempt before was given, so that an upgrade never changes a running job."""
    before = ctx.observed.config(stage.name)
    if before is None:
        return stage.config(ctx, draft.status, number)
    host = before.master_host and master_host(child_name(ctx.name, stage.name, number))
    return before.model_copy(update={"attempt": number, "master_host": host})


def _children(ctx: Context, stage: PodStage, config: RunConfig, shape: PodShape) -> list[Manifest]:
    identity = AttemptIdentity(ctx.job, stage.name, config.attempt)
    children = [run_configmap(identity, config)]
    if shape.rendezvous:
        children.append(rendezvous_service(identity))
    return [*children, stage_job(identity, shape, ctx.settings)]


def _cached(ctx: Context, child: Manifest) -> Manifest | None:
    return ctx.view.get(child["kind"], ctx.namespace, child["metadata"]["name"])


def _taken(ctx: Context, children: list[Manifest]) -> Stall | None:
    """A child's name may still be held by an earlier job of the same name that is going."""
    for child in children:
        found = _cached(ctx, child)
        owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
        if found is not None and all(owner.get("uid") != ctx.uid for owner in owners):
            name = f"{child['kind']} {child['metadata']['name']}"
            return Stall("NameTaken", f"{name} belongs to something else; waiting for it to go")
    return None


def _delete_older(ctx: Context, draft: Draft, stage: PodStage, seen: int) -> None:
    for attempt in ctx.observed.attempts.get(stage.name, ()):
        if attempt.number < seen and attempt.job is not None:
            draft.delete.append(_reference(attempt.job))


def _reference(job: Manifest) -> ObjectRef:
    meta = job["metadata"]
    return ObjectRef("batch/v1", "Job", meta["namespace"], meta["name"], meta["uid"])


def _watch(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> None:
    """Tell what the running attempt does, or what it waits for."""
    draft.wake(RECHECK)
    draft.update(phase=stage.phase(attempt))
    claims = [ctx.settings.workspace_claim]
    if stage.name == "prepare":
        claims += user_claims(ctx.spec, ctx.settings.workspace_claim)
    draft.stall = attempt_stall(attempt, ctx.view, ctx.namespace, claims, ctx.now)
    if attempt.config is None:
        _restore(ctx, draft, stage, attempt)
    plan, progress = draft.status.plan, draft.status.progress
    if stage.name == "train" and plan and not (progress and progress.stage == "train"):
        draft.update(progress=waiting_to_train(plan))
    leader = attempt.leader()
    message = _waiting(attempt)
    if leader is not None and leader.phase == "Running":
        message = _listen(ctx, draft, stage, attempt, leader) or message
    draft.update(message=message)
    draft.update_stage(stage.name, message=message)


def _restore(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> None:
    """Without its ConfigMap or Service a pod that has not started never will."""
    config = _config(ctx, draft, stage, attempt.number)
    if isinstance(config, Stall | Failure):
        return
    shape = stage.shape(ctx, config)
    if isinstance(shape, Stall):
        return
    children = _children(ctx, stage, config, shape)[:-1]
    draft.create.extend(child for child in children if _cached(ctx, child) is None)


def _waiting(attempt: Attempt) -> str:
    if attempt.suspended and not attempt.pods:
        return f"{attempt.stage} waits: its Job is suspended, as by a queue that has no room yet"
    running = sum(pod.phase == "Running" for pod in attempt.pods)
    if any(pod.deadline is not None for pod in attempt.pods):
        return f"{attempt.stage} is stopping"
    if running == attempt.nodes:
        plan = attempt.config.plan if attempt.config and attempt.stage == "train" else None
        where = f" on {plan.nodes} x {plan.gpus_per_node} {plan.device}" if plan else ""
        return f"{attempt.stage} is running{where}" + (f" with {plan.strategy}" if plan else "")
    if ended := sum(pod.finished for pod in attempt.pods):
        return f"{attempt.stage} is ending: {ended} of {attempt.nodes} pods have ended"
    waiting = sorted({pod.waiting_reason for pod in attempt.pods if pod.waiting_reason})
    why = f" ({', '.join(waiting)})" if waiting else ""
    return f"{attempt.stage} is starting: {running} of {attempt.nodes} pods run{why}"


def pace(base: float, started: datetime | None, now: datetime) -> float:
    """Seconds between two looks at a stage: a sixtieth of its age, between `base` and 30 s.

    Every look may cost a status write, and who waits for hours does not wait for seconds.
    """
    age = (now - started).total_seconds() if started else 0.0
    return max(base, min(30.0, age / 60))


def _listen(
    ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, leader: PodFacts
) -> str | None:
    """Ask the leader for its progress, show the newest answer, return what it says it does."""
    if leader.ip is None:
        return None
    interval = pace(ctx.settings.progress_interval, attempt.job_created(), ctx.now)
    draft.asks.append(progress_ask(leader.uid, leader.ip, interval))
    draft.wake(interval)
    answer = ctx.view.answer(ask_id(leader.uid))
    progress = read_progress(answer, stage.name, attempt.number)
    if progress is None:
        return None
    draft.update(progress=shown(progress, draft.status.progress))
    return told(progress)


def _succeed(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, over: Ending) -> bool:
    """Take the result over; a result without its facts is none."""
    assert over.result is not None
    accepted = stage.accept(ctx, draft.status, over.result)
    if accepted is None:
        failure = Failure(
            stage=stage.name,
            reason="NoResult",
            message=f"{stage.name} ended without the facts that the next stage needs",
            attempt=attempt.number,
        )
        _retry(ctx, draft, stage, attempt, Ending("Crashed", over.at, None, failure))
        return False
    draft.status = accepted.status
    draft.update(failure=None, message=accepted.message)
    draft.update_stage(
        stage.name, state="Succeeded", finished_at=time_text(over.at), message=accepted.message
    )
    if accepted.refusal is None:
        return True
    draft.fail(stage.name, accepted.refusal.model_copy(update={"attempt": attempt.number}))
    return False


def _refuse(ctx: Context, draft: Draft, stage: PodStage, over: Ending) -> None:
    """End the job; figures that came with the failure stay in the status."""
    if over.result is not None:
        accepted = stage.accept(ctx, draft.status, over.result)
        if accepted is not None:
            draft.status = accepted.status
    assert over.failure is not None
    draft.fail(stage.name, over.failure)
    draft.update_stage(stage.name, finished_at=time_text(over.at))


def _retry(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt, over: Ending) -> None:
    """Note the failure once, wait, remove the old Job, and when it is gone launch the next."""
    failure = over.failure
    assert failure is not None
    known = _noted(draft, attempt)
    counted = over.kind == "Crashed"
    if counted and not known:
        if draft.status.restarts >= ctx.spec.max_restarts:
            _give_up(draft, stage, failure)
            return
        draft.update(restarts=draft.status.restarts + 1)
    if not known:
        draft.update(failure=failure)
    if attempt.job is None and known:
        _launch(ctx, draft, stage, attempt.number + 1)
        return
    draft.update(phase=stage.phase(attempt) if stage.name != "train" else "Queued")
    due = over.at + timedelta(seconds=_delay(draft, attempt, counted))
    left = (due - ctx.now).total_seconds()
    draft.wake(left if left > 0 else 1.0)
    if left <= 0 and attempt.job is not None:
        draft.delete.append(_reference(attempt.job))
    message = (
        f"{stage.name} attempt {attempt.number} ended: {failure.message.rstrip('.')}; trying again"
    )
    draft.update(message=message[:4096])
    draft.update_stage(stage.name, message=message[:4096])


def _delay(draft: Draft, attempt: Attempt, counted: bool) -> float:
    """Seconds: doubling with every restart; short for what was not the job's fault."""
    if counted:
        return float(min(LONGEST_DELAY, FIRST_DELAY * 2 ** max(0, draft.status.restarts - 1)))
    return float(min(LONGEST_DELAY, 2 ** (min(attempt.number, 10) - 1)))


def _give_up(draft: Draft, stage: PodStage, failure: Failure) -> None:
    restarts = draft.status.restarts
    again = f" (after {restarts} restart{'s' if restarts != 1 else ''})" if restarts else ""
    draft.fail(stage.name, failure.model_copy(update={"message": failure.message + again}))
