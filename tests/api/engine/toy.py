"""A tiny product for the engine: every job gets one ConfigMap, one Job and a phase.

It is a real plan, run by the real engine; only what it decides is trivial. As a program it is the
operator process with that product, for tests that stop, freeze or kill it.
"""

from __future__ import annotations

import sys
from datetime import datetime

from finetune_operator.decision import (
    HASH_ANNOTATION,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    MANAGED_BY_LABEL,
    MANAGER,
    STAGE_LABEL,
    Decision,
    EventRecord,
    Key,
    Manifest,
    Settings,
    View,
)
from finetune_operator.engine.reconciler import Controllers
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
    """The batch Job of a job's first stage, suspended so that nothing runs."""
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


def plan(key: Key, view: View, now: datetime) -> Decision | None:
    """Create the children, then say that it is preparing."""
    job = view.get(key.kind, key.namespace, key.name)
    if job is None or job["metadata"].get("deletionTimestamp"):
        return None
    known = (job.get("status") or {}).get("phase")
    missing = tuple(
        child
        for child in (config_map(job), batch_job(job))
        if view.get(child["kind"], key.namespace, child["metadata"]["name"]) is None
    )
    begun = EventRecord("Normal", "Preparing", "The data is being prepared")
    return Decision(
        create=missing,
        status=status("Preparing"),
        events=() if known == "Preparing" else (begun,),
    )


def nothing(_key: Key, _view: View, _now: datetime) -> Decision | None:
    """What is planned where there is nothing to do."""
    return None


def product(_: Settings) -> Controllers:
    """The tiny product."""
    return Controllers(plans={"FineTuneJob": plan, "Workspace": nothing})


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
    sys.exit(run(sys.argv[1:], product))
