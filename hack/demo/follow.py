"""Follows a FineTuneJob the way a person does, and prints a line whenever something changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hack.demo.kubectl import Kubectl, KubectlError


class JobFailed(RuntimeError):
    """The job ended as Failed; the message says why."""


class TookTooLong(RuntimeError):
    """The job did not end in time."""


def line_of(job: dict[str, Any]) -> str:
    """Phase, step, loss and message of a job, in one line."""
    status = job.get("status", {})
    progress = status.get("progress") or {}
    parts = [f"{status.get('phase', 'Pending'):<10}"]
    if progress.get("totalSteps"):
        parts.append(f"step {progress['step']}/{progress['totalSteps']}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']}")
    if status.get("message"):
        parts.append(str(status["message"]))
    return "  ".join(parts)


def follow(
    kubectl: Kubectl,
    name: str,
    seconds: float,
    say: Callable[[str], None],
    seen: Callable[[dict[str, Any]], None] = lambda job: None,
) -> dict[str, Any]:
    """Wait until the job has ended and return it.

    `seen` is called with every state that was observed. Raises JobFailed, or TookTooLong after
    `seconds`.
    """
    deadline = time.monotonic() + seconds
    last = ""
    while time.monotonic() < deadline:
        try:
            job: dict[str, Any] = kubectl.json("get", "finetunejob", name)
        except KubectlError as error:
            if last and "(NotFound)" in str(error):
                raise JobFailed(f"job {name} was deleted") from None
            say(f"the API server does not answer, trying again: {error}")
            time.sleep(2)
            continue
        seen(job)
        line = line_of(job)
        if line != last:
            say(line)
            last = line
        phase = job.get("status", {}).get("phase")
        if phase == "Succeeded":
            return job
        if phase == "Failed":
            raise JobFailed(reason_of(job))
        time.sleep(1)
    raise TookTooLong(f"job {name} did not end within {seconds:.0f} s; last seen: {last}")


def reason_of(job: dict[str, Any]) -> str:
    """The failure of a job: what, where, what to do."""
    status = job.get("status", {})
    failure = status.get("failure") or {}
    parts = [failure.get("reason", "Failed"), failure.get("message", status.get("message", ""))]
    if failure.get("file"):
        parts.append(f"at {failure['file']}:{failure.get('line', '?')}")
    if failure.get("remedy"):
        parts.append(f"What to do: {failure['remedy']}")
    return ". ".join(str(part) for part in parts if part)
