"""The progress that a pod reports, as the status shows it. Pure: the engine polls the pod."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from finetune_api.facts import TrainFacts
from finetune_api.finetunejob import JobProgress
from finetune_api.jobstatus import CheckpointStatus
from finetune_api.progress import Progress
from finetune_api.protocol import TELEMETRY_PORT, StageName
from finetune_api.train_plan import TrainPlan
from pydantic import ValidationError

from finetune_operator.decision import HttpRequest, HttpResponse
from finetune_operator.manifest import format_time

PROGRESS_MESSAGE_LIMIT = 1024
"""Characters of the message of a pod."""
LARGE = 1e6
LONGEST = 100 * 365 * 86400
"""Seconds beyond which an estimate of the remaining time is not shown."""
LONGEST_INTERVAL = 30.0
FEW = 4
"""Items that a message lists."""


def progress_request(pod_uid: str, pod_ip: str, interval: float) -> HttpRequest:
    """The poll of a running pod; `interval` in seconds."""
    host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
    url = f"http://{host}:{TELEMETRY_PORT}/progress"
    return HttpRequest(id=request_id(pod_uid), url=url, interval=interval)


def request_id(pod_uid: str) -> str:
    """The id under which the View has the response of a pod."""
    return f"progress/{pod_uid}"


def poll_interval(base: float, started: datetime | None, now: datetime) -> float:
    """Seconds between two polls of a stage: a sixtieth of its age, between `base` and 30 s.

    Every poll may cost a status write, and a user who waits for hours does not need every second.
    """
    age = (now - started).total_seconds() if started else 0.0
    return max(base, min(LONGEST_INTERVAL, age / 60))


def read_progress(response: HttpResponse | None, stage: StageName, attempt: int) -> Progress | None:
    """What the pod reports; None for no response, an error, an invalid body, or a response of
    another attempt."""
    if response is None or response.status != 200:
        return None
    try:
        progress = Progress.model_validate(response.body)
    except ValidationError:
        return None
    return progress if (progress.stage, progress.attempt) == (stage, attempt) else None


def job_progress(progress: Progress, before: JobProgress | None, now: datetime) -> JobProgress:
    """Progress for the status.

    `updated_at` moves only when something else does, so that a pod without news costs no write.
    `stalled_since` is when a silent rank was first reported: an operator that restarts keeps it.
    """
    new = JobProgress(
        stage=progress.stage,
        step=progress.step,
        total_steps=progress.total_steps,
        loss=_round_loss(progress.loss),
        tokens_per_second=_round(progress.tokens_per_second),
        learning_rate=_finite_or_none(progress.learning_rate),
        epoch=_round(progress.epoch),
        world_size=progress.world_size,
        engine=progress.engine,
        precision=progress.precision,
        last_checkpoint_step=progress.last_checkpoint_step or None,
        eval_loss=_finite_or_none(progress.eval_loss),
        mfu=_round(progress.mfu),
        peak_memory_bytes=progress.peak_memory_bytes,
        stalled_since=_stalled_since(progress, before, now),
        eta_seconds=_round_up_eta(progress.eta_seconds),
    )
    if before is not None and before.model_copy(update={"updated_at": None}) == new:
        return before
    return new.model_copy(update={"updated_at": _format_unix_time(progress.updated_at)})


def _stalled_since(progress: Progress, before: JobProgress | None, now: datetime) -> str | None:
    if not progress.stalled:
        return None
    known = before.stalled_since if before and before.stage == progress.stage else None
    return known or format_time(now)


def checkpoint_status(
    progress: Progress, before: CheckpointStatus | None
) -> CheckpointStatus | None:
    """The newest complete checkpoint, as the attempt found it or saved it.

    Until the attempt has looked for one, that of the attempt before stays; so does the time that a
    checkpoint takes until it is measured again.
    """
    if progress.last_checkpoint_step is None:
        return before
    if progress.last_checkpoint_step == 0:
        return None
    seconds = _round(progress.checkpoint_seconds)
    return CheckpointStatus(
        step=progress.last_checkpoint_step,
        seconds=seconds if seconds is not None and seconds >= 0 else before and before.seconds,
        bytes=progress.checkpoint_bytes or (before and before.bytes),
    )


def progress_message(progress: Progress) -> str | None:
    """What the pod does, in one line; for training with its steps, as the pod's own message is only
    "training"."""
    if progress.stalled:
        silent = join_few([f"rank {each.rank} on host {each.host}" for each in progress.stalled])
        return f"no sign of life from {silent} after step {progress.stalled[0].step}"
    message = progress.message[:PROGRESS_MESSAGE_LIMIT]
    if progress.stage != "train" or not progress.total_steps:
        return message or None
    parts = [f"step {progress.step} of {progress.total_steps}"]
    if speed := _finite_or_none(progress.tokens_per_second):
        parts.append(f"{speed:.0f} tokens/s")
    if left := format_duration(progress.eta_seconds):
        parts.append(f"about {left} left")
    return f"{message or 'training'}: {', '.join(parts)}"


def initial_progress(plan: TrainPlan) -> JobProgress:
    """What is known before the first response of a training pod."""
    return JobProgress(stage="train", total_steps=plan.total_steps)


def progress_at_step(progress: JobProgress | None, step: int) -> JobProgress | None:
    """The last progress of training, which continued for some steps after its last report."""
    if progress is None or progress.stage != "train":
        return progress
    return progress.model_copy(update={"step": step})


def clear_running_fields(progress: JobProgress | None) -> JobProgress | None:
    """Progress of a stage of which nothing runs now: no time left, and no rank that is silent."""
    return progress and progress.model_copy(update={"eta_seconds": None, "stalled_since": None})


def final_progress(facts: TrainFacts, plan: TrainPlan | None, at: str) -> JobProgress:
    """The last progress of training, from its result."""
    is_best = facts.best_eval_loss is not None
    eval_loss = facts.best_eval_loss if is_best else facts.final_eval_loss
    return JobProgress(
        stage="train",
        step=facts.steps,
        total_steps=plan.total_steps if plan else None,
        loss=_round_loss(facts.final_loss),
        tokens_per_second=_round(facts.tokens_per_second),
        world_size=facts.world_size,
        engine=facts.engine,
        precision=facts.precision,
        eval_loss=_finite_or_none(eval_loss),
        mfu=_round(facts.mfu),
        peak_memory_bytes=facts.peak_memory_bytes,
        updated_at=at,
    )


def format_loss(loss: float | None) -> str | None:
    """A loss with three decimals, or as a power of ten where training has diverged."""
    if loss is None or not math.isfinite(loss):
        return None
    return f"{loss:.3f}" if abs(loss) < LARGE else f"{loss:.3e}"


def join_few(items: Sequence[str]) -> str:
    """The first FEW items and how many more there are, so that a message stays short."""
    more = f" and {len(items) - FEW} more" if items[FEW:] else ""
    return ", ".join(items[:FEW]) + more


def format_duration(seconds: float | None) -> str | None:
    """Seconds for people: 45s, 3m20s, 2h05m, 3d04h."""
    rounded = _round_up_eta(seconds)
    if rounded is None:
        return None
    if rounded < 60:
        return f"{rounded}s"
    if rounded < 3600:
        return f"{rounded // 60}m{rounded % 60:02d}s"
    if rounded < 86400:
        return f"{rounded // 3600}h{rounded % 3600 // 60:02d}m"
    return f"{rounded // 86400}d{rounded % 86400 // 3600:02d}h"


def _round_up_eta(seconds: float | None) -> int | None:
    return math.ceil(seconds) if seconds is not None and 0 <= seconds <= LONGEST else None


def _round_loss(loss: float | None) -> float | None:
    """Five significant digits, for the column of `kubectl get`."""
    return None if loss is None else _finite_or_none(float(f"{loss:.5g}"))


def _finite_or_none(number: float | None) -> float | None:
    """JSON has neither NaN nor infinity."""
    return number if number is not None and math.isfinite(number) else None


def _round(number: float | None) -> float | None:
    finite = _finite_or_none(number)
    return None if finite is None else round(finite, 3)


def _format_unix_time(unix: float) -> str | None:
    if not math.isfinite(unix) or not 0 < unix < 4102444800:
        return None
    return format_time(datetime.fromtimestamp(unix, UTC))
