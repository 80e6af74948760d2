"""Progress that a pod tells, as the status shows it. Pure: the engine does the asking."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from finetune_api.finetunejob import JobProgress
from finetune_api.jobstatus import CheckpointStatus
from finetune_api.run import TELEMETRY_PORT, Progress, StageName, TrainFacts, TrainPlan
from pydantic import ValidationError

from finetune_operator.decision import HttpRequest, HttpResponse
from finetune_operator.manifest import format_time

MESSAGE_LIMIT = 1024
LARGE = 1e6
LONGEST = 100 * 365 * 86400
"""Seconds beyond which a time to the end is none."""


def progress_ask(pod_uid: str, pod_ip: str, interval: float) -> HttpRequest:
    """The question to a running pod; `interval` in seconds."""
    host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
    url = f"http://{host}:{TELEMETRY_PORT}/progress"
    return HttpRequest(id=ask_id(pod_uid), url=url, interval=interval)


def ask_id(pod_uid: str) -> str:
    """Under which the answer of a pod is found."""
    return f"progress/{pod_uid}"


def read_progress(answer: HttpResponse | None, stage: StageName, attempt: int) -> Progress | None:
    """What the pod told; None for no answer, an error, nonsense, or another attempt's answer."""
    if answer is None or answer.status != 200:
        return None
    try:
        progress = Progress.model_validate(answer.body)
    except ValidationError:
        return None
    return progress if (progress.stage, progress.attempt) == (stage, attempt) else None


def shown(progress: Progress, before: JobProgress | None, now: datetime) -> JobProgress:
    """Progress for the status.

    `updated_at` moves only when something else does, so that a pod with no news costs no write.
    `stalled_since` is when silence was told first: who asks anew after a restart goes on counting.
    """
    told = JobProgress(
        stage=progress.stage,
        step=progress.step,
        total_steps=progress.total_steps,
        summary=_summary(progress.step, progress.total_steps),
        loss=_finite(progress.loss),
        loss_text=loss_text(progress.loss),
        tokens_per_second=_rounded(progress.tokens_per_second),
        learning_rate=_finite(progress.learning_rate),
        epoch=_rounded(progress.epoch),
        world_size=progress.world_size,
        engine=progress.engine,
        last_checkpoint_step=progress.last_checkpoint_step or None,
        eval_loss=_finite(progress.eval_loss),
        mfu=_rounded(progress.mfu),
        peak_memory_bytes=progress.peak_memory_bytes,
        stalled_since=_silent_since(progress, before, now),
        eta=duration_text(progress.eta_seconds),
    )
    if before is not None and before.model_copy(update={"updated_at": None}) == told:
        return before
    return told.model_copy(update={"updated_at": _time(progress.updated_at)})


def _silent_since(progress: Progress, before: JobProgress | None, now: datetime) -> str | None:
    if not progress.stalled:
        return None
    known = before.stalled_since if before and before.stage == progress.stage else None
    return known or format_time(now)


def checkpoint_told(progress: Progress, before: CheckpointStatus | None) -> CheckpointStatus | None:
    """The newest complete checkpoint, as the attempt found it or saved it.

    Until it has looked, that of the one before stands; what a checkpoint costs is known until it
    is measured again.
    """
    if progress.last_checkpoint_step is None:
        return before
    if progress.last_checkpoint_step == 0:
        return None
    seconds = _rounded(progress.checkpoint_seconds)
    return CheckpointStatus(
        step=progress.last_checkpoint_step,
        seconds=seconds if seconds is not None and seconds >= 0 else before and before.seconds,
        bytes=progress.checkpoint_bytes or (before and before.bytes),
    )


def told(progress: Progress) -> str | None:
    """What the pod does, in one line; while it trains that alone would be a bare "training"."""
    if progress.stalled:
        return _silent(progress)
    message = progress.message[:MESSAGE_LIMIT]
    if progress.stage != "train" or not progress.total_steps:
        return message or None
    parts = [f"step {progress.step} of {progress.total_steps}"]
    if speed := _finite(progress.tokens_per_second):
        parts.append(f"{speed:.0f} tokens/s")
    return f"{message or 'training'}: {', '.join(parts)}"


def _silent(progress: Progress) -> str:
    named = few([f"rank {each.rank} on host {each.host}" for each in progress.stalled])
    return f"no sign of life from {named} after step {progress.stalled[0].step}"


def waiting_to_train(plan: TrainPlan) -> JobProgress:
    """What is known before the first answer of a training pod."""
    return JobProgress(
        stage="train",
        total_steps=plan.total_steps,
        summary=f"0/{plan.total_steps}",
    )


def stopped_at(progress: JobProgress | None, step: int) -> JobProgress | None:
    """The last progress of training, which went on for some steps after it was told."""
    if progress is None or progress.stage != "train":
        return progress
    summary = _summary(step, progress.total_steps)
    return progress.model_copy(update={"step": step, "summary": summary})


def at_rest(progress: JobProgress | None) -> JobProgress | None:
    """Progress of a stage of which nothing runs now: there is no time left to tell."""
    return progress and progress.model_copy(update={"eta": None, "stalled_since": None})


def trained(facts: TrainFacts, plan: TrainPlan | None, at: str) -> JobProgress:
    """The last progress of training, from its result."""
    total = plan.total_steps if plan else None
    return JobProgress(
        stage="train",
        step=facts.steps,
        total_steps=total,
        summary=_summary(facts.steps, total),
        loss=_finite(facts.final_loss),
        loss_text=loss_text(facts.final_loss),
        tokens_per_second=_rounded(facts.tokens_per_second),
        world_size=facts.world_size,
        engine=facts.engine,
        eval_loss=_finite(facts.best_eval_loss),
        mfu=_rounded(facts.mfu),
        peak_memory_bytes=facts.peak_memory_bytes,
        updated_at=at,
    )


def loss_text(loss: float | None) -> str | None:
    """A loss with three decimals, or as a power of ten where it has left all bounds."""
    if loss is None or _finite(loss) is None:
        return None
    return f"{loss:.3f}" if abs(loss) < LARGE else f"{loss:.3e}"


def few(items: Sequence[str], most: int = 4) -> str:
    """The first of many, as a message has no room for all."""
    more = f" and {len(items) - most} more" if items[most:] else ""
    return ", ".join(items[:most]) + more


def duration_text(seconds: float | None) -> str | None:
    """Seconds for people: 45s, 3m20s, 2h05m, 3d04h."""
    if seconds is None or not 0 <= seconds <= LONGEST:
        return None
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _summary(step: int, total: int | None) -> str:
    return f"{step}/{total}" if total else (str(step) if step else "")


def _finite(number: float | None) -> float | None:
    """NaN and infinity have no place in JSON."""
    return number if number is not None and math.isfinite(number) else None


def _rounded(number: float | None) -> float | None:
    finite = _finite(number)
    return None if finite is None else round(finite, 3)


def _time(unix: float) -> str | None:
    if not math.isfinite(unix) or not 0 < unix < 4102444800:
        return None
    return format_time(datetime.fromtimestamp(unix, UTC))
