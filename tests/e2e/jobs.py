"""FineTuneJobs for the end-to-end tests, and what to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from hack.demo.kubectl import Kubectl, KubectlError

T = TypeVar("T")


def tiny_job(name: str, **changes: Any) -> dict[str, Any]:
    """A job that trains the tiny model for two steps on one node and serves nothing."""
    spec: dict[str, Any] = {
        "model": {"uri": "pvc://demo-assets/models/tiny"},
        "dataset": {"train": [{"uri": "pvc://demo-assets/data/tiny.jsonl"}]},
        "training": {"maxSteps": 2, "batchSize": 4, "maxSequenceLength": 128},
        "compute": {"profile": "cpu"},
        "evaluation": {"maxSamples": 8, "generations": 3, "maxNewTokens": 4},
    }
    for key, value in changes.items():
        spec[key] = {**spec[key], **value} if isinstance(spec.get(key), dict) else value
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def until(what: str, seconds: float, probe: Callable[[], T | None], every: float = 0.25) -> T:
    """The first thing that is not None or False; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


def job(kubectl: Kubectl, name: str) -> dict[str, Any]:
    """The job as it is now."""
    found: dict[str, Any] = kubectl.json("get", "finetunejob", name)
    return found


def wait_for_phase(kubectl: Kubectl, name: str, phase: str, seconds: float) -> dict[str, Any]:
    """Wait for a phase; a job that ends in another one fails the test at once, with its reason."""

    def look() -> dict[str, Any] | None:
        found = job(kubectl, name)
        now = found.get("status", {}).get("phase")
        if now in ("Succeeded", "Failed") and now != phase:
            raise AssertionError(f"{name} is {now}: {found['status'].get('failure')}")
        return found if now == phase else None

    # Rarely: every look is a process of its own, and takes the cores from what is waited for.
    return until(f"{name} to be {phase}", seconds, look, every=1.0)


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """One condition of an object; empty when it has none of that type."""
    every: list[dict[str, Any]] = found.get("status", {}).get("conditions", [])
    return next((item for item in every if item["type"] == kind), {})


def metric(evaluation: dict[str, Any], name: str) -> dict[str, Any]:
    """A metric of status.evaluation, compared with the base model."""
    found: dict[str, Any] = next(c for c in evaluation["comparisons"] if c["metric"] == name)
    return found


def events(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """Events about a FineTuneJob."""
    selector = f"involvedObject.kind=FineTuneJob,involvedObject.name={name}"
    found: list[dict[str, Any]] = kubectl.json("get", "events", "--field-selector", selector)[
        "items"
    ]
    return found


def gone(kubectl: Kubectl, kind: str, name: str) -> bool:
    """Whether an object does not exist."""
    try:
        kubectl.run("get", kind, name)
    except KubectlError as error:
        return "NotFound" in str(error)
    return False
