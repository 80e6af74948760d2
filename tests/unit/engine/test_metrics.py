from __future__ import annotations

from finetune_operator.decision import JOB_NAME_LABEL, STAGE_LABEL, Manifest
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.workqueue import WorkQueue


def made(kind: str, name: str, version: int, phase: str = "", **labels: str) -> Manifest:
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(version)}
    status = {"phase": phase} if phase else {}
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {**metadata, "labels": labels},
        "status": status,
    }


def test_the_handover_is_from_the_end_of_one_stage_to_the_job_of_another() -> None:
    metrics, cache = Metrics(), Cache()
    intake = EventHandlers(cache, WorkQueue(metrics.queue), metrics.handovers)
    labels = {JOB_NAME_LABEL: "job", STAGE_LABEL: "prepare"}
    intake.changed(made("Pod", "p", 1, "Running", **labels))
    metrics.handovers.began("ns", "job", "train")
    assert count(metrics) == 0, "no stage has ended yet"
    intake.changed(made("Pod", "p", 2, "Succeeded", **labels))
    metrics.handovers.began("ns", "job", "train")
    assert count(metrics) == 1
    intake.changed(made("Pod", "q", 3, "Failed", **{**labels, STAGE_LABEL: "train"}))
    metrics.handovers.began("ns", "job", "train")
    assert count(metrics) == 1, "a retry waits on purpose"


def test_jobs_are_counted_by_phase_and_never_named() -> None:
    metrics = Metrics()
    jobs = [
        made("FineTuneJob", "secret-project", 1),
        made("FineTuneJob", "another", 1, "Training"),
    ]
    metrics.jobs(lambda: jobs)
    text = metrics.text().decode()
    assert 'finetune_jobs{phase="Pending"} 1.0' in text
    assert 'finetune_jobs{phase="Training"} 1.0' in text
    assert 'finetune_jobs{phase="Failed"} 0.0' in text
    assert "secret-project" not in text


def count(metrics: Metrics) -> float:
    [line] = [
        line
        for line in metrics.text().decode().splitlines()
        if line.startswith("finetune_stage_handover_seconds_count")
    ]
    return float(line.split()[-1])
