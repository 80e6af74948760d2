"""A tiny controller for the engine: every job gets one ConfigMap, one Job and a phase.

The real engine runs it; only what it decides is trivial. As a program this module is the operator
process with that controller, for tests that stop, freeze or kill it.
"""

from __future__ import annotations

import sys
from datetime import datetime

from finetune_operator.controllers import keys_of
from finetune_operator.decision import (
    HASH_ANNOTATION,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    MANAGED_BY_LABEL,
    MANAGER,
    STAGE_LABEL,
    ControllerTable,
    Decision,
    EventRecord,
    Key,
    Manifest,
    Reconcile,
    Settings,
    View,
)
from finetune_operator.main import run

SPEC = {"model": {"uri": "hf://org/model"}, "dataset": {"train": [{"uri": "s3://bucket/a.jsonl"}]}}


def finetune_job(namespace: str, name: str) -> Manifest:
    """A FineTuneJob that the schema accepts."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"namespace": namespace, "name": name},
        "spec": SPEC,
    }


def config_map(job: Manifest, digest: str = "one") -> Manifest:
    """The immutable child of a job."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, f"{job['metadata']['name']}-prepare-1", digest),
        "immutable": True,
        "data": {"run.json": "{}"},
    }


def batch_job(job: Manifest) -> Manifest:
    """The batch Job of a job's first stage, suspended so that no pod runs."""
    container = {"name": "main", "image": "none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job, f"{job['metadata']['name']}-prepare-1", "one"),
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


def service(job: Manifest, ports: tuple[int, ...] = (80,)) -> Manifest:
    """A mutable child that is applied; the server adds defaults to its ports."""
    metadata = _metadata(job, f"{job['metadata']['name']}-svc", "")
    del metadata["annotations"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {"app": "x"},
            "ports": [{"name": f"p{port}", "port": port} for port in ports],
        },
    }


def status(phase: str, generation: int = 1) -> Manifest:
    """A status that the schema accepts."""
    return {"phase": phase, "observedGeneration": generation}


def reconcile(key: Key, view: View, now: datetime) -> Decision | None:
    """Create the missing children and set the phase Preparing, with one event."""
    job = view.get(key.kind, key.namespace, key.name)
    if job is None or job["metadata"].get("deletionTimestamp"):
        return None
    known = (job.get("status") or {}).get("phase")
    missing = tuple(
        child
        for child in (config_map(job), batch_job(job))
        if view.get(child["kind"], key.namespace, child["metadata"]["name"]) is None
    )
    started = EventRecord("Normal", "Preparing", "The data is being prepared")
    return Decision(
        create=missing,
        status=status("Preparing"),
        events=() if known == "Preparing" else (started,),
    )


def do_nothing(_key: Key, _view: View, _now: datetime) -> Decision | None:
    """The reconcile function of keys that need nothing."""
    return None


def build_controllers(_: Settings) -> ControllerTable:
    """The tiny controller, in the table that the engine works by."""
    return make_controllers(reconcile)


def make_controllers(reconcile_job: Reconcile) -> ControllerTable:
    """Controllers that call this function for jobs; the other keys that `keys_of` finds need
    nothing."""
    others = ("ModelEndpoint", "AcceleratorProfile", "Workspace")
    return ControllerTable(
        reconcile={"FineTuneJob": reconcile_job} | dict.fromkeys(others, do_nothing),
        on_rejected={},
        keys_of=keys_of,
    )


def _metadata(job: Manifest, name: str, digest: str) -> Manifest:
    metadata = job["metadata"]
    return {
        "name": name,
        "namespace": metadata["namespace"],
        "labels": {
            MANAGED_BY_LABEL: MANAGER,
            JOB_NAME_LABEL: metadata["name"],
            JOB_UID_LABEL: metadata["uid"],
            STAGE_LABEL: "prepare",
        },
        "annotations": {HASH_ANNOTATION: digest},
        "ownerReferences": [
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneJob",
                "name": metadata["name"],
                "uid": metadata["uid"],
                "controller": True,
            }
        ],
    }


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], build_controllers))
