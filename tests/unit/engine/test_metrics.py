from __future__ import annotations

from finetune_operator.decision import JOB_NAME_LABEL, STAGE_LABEL, ControllerTable, Manifest
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.workqueue import WorkQueue


def manifest(kind: str, name: str, version: int, phase: str = "", **labels: str) -> Manifest:
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(version)}
    status = {"phase": phase} if phase else {}
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {**metadata, "labels": labels},
        "status": status,
    }


def test_a_handover_is_measured_from_the_end_of_a_stage_to_the_job_of_the_next() -> None:
    metrics, cache = Metrics(), Cache()
    controllers = ControllerTable({}, {}, keys_of=lambda _manifest, _view, _old: ())
    event_handlers = EventHandlers(cache, WorkQueue(metrics.queue), controllers, metrics.handovers)
    labels = {JOB_NAME_LABEL: "job", STAGE_LABEL: "prepare"}
    event_handlers.on_update(manifest("Pod", "p", 1, "Running", **labels))
    metrics.handovers.record_stage_start("ns", "job", "train")
    assert count(metrics) == 0, "no stage has ended yet"
    event_handlers.on_update(manifest("Pod", "p", 2, "Succeeded", **labels))
    metrics.handovers.record_stage_start("ns", "job", "train")
    assert count(metrics) == 1
    event_handlers.on_update(manifest("Pod", "q", 3, "Failed", **{**labels, STAGE_LABEL: "train"}))
    metrics.handovers.record_stage_start("ns", "job", "train")
    assert count(metrics) == 1, "a retry of the same stage does not count"


def test_jobs_are_counted_by_phase_and_never_named() -> None:
    metrics = Metrics()
    jobs = [
        manifest("FineTuneJob", "secret-project", 1),
        manifest("FineTuneJob", "another", 1, "Training"),
    ]
    metrics.export_jobs_by_phase(lambda: jobs)
    text = metrics.render().decode()
    assert 'finetune_jobs{phase="Pending"} 1.0' in text
    assert 'finetune_jobs{phase="Training"} 1.0' in text
    assert 'finetune_jobs{phase="Failed"} 0.0' in text
    assert "secret-project" not in text


def count(metrics: Metrics) -> float:
    [line] = [
        line
        for line in metrics.render().decode().splitlines()
        if line.startswith("finetune_stage_handover_seconds_count")
    ]
    return float(line.split()[-1])
