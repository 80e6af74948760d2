"""A cluster in memory for tests of the job's logic: API objects as data, and what Kubernetes does.

It carries out a Decision as the API server would, and plays Job controller, scheduler and kubelet
on demand. Time stands still until a test moves it.
"""

import copy
import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.run import StageResult
from finetune_operator.decision import (
    ATTEMPT_LABEL,
    STAGE_LABEL,
    Decision,
    EventRecord,
    HttpResponse,
    Manifest,
    ObjectRef,
    Settings,
)
from finetune_operator.jobs.plan import reconcile_job

NAMESPACE = "team-a"
JOB_UID = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
SETTINGS = Settings(trainer_image="registry.example/trainer:1", serving_image="vllm:1")
START = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32

MODEL = {
    "architecture": "LlamaForCausalLM",
    "parameters": 134515008,
    "layers": 30,
    "hiddenSize": 576,
    "intermediateSize": 1536,
    "attentionHeads": 9,
    "keyValueHeads": 3,
    "vocabulary": 49152,
    "contextLength": 8192,
    "weightBytes": 269060552,
    "folder": "snapshot",
}
DATA = {
    "format": "instruction",
    "trainExamples": 900,
    "evalExamples": 100,
    "trainTokens": 90000,
    "evalTokens": 9000,
    "trainSequences": 800,
    "longestExample": 128,
    "digest": DIGEST,
}
EVALUATION = {
    "loss": {
        "base": 3.656,
        "tuned": 2.845,
        "improvementPercent": 22.2,
        "lowPercent": 20.1,
        "highPercent": 24.3,
        "tokens": 9000,
    },
    "passed": True,
}
PROBE = {
    "messages": [{"role": "user", "content": "What is a byte?"}],
    "answer": "Eight bits.",
    "maxTokens": 48,
}
RESULTS: dict[str, dict[str, Any]] = {
    "prepare": {"model": MODEL, "data": DATA},
    "train": {
        "train": {
            "steps": 30,
            "finalLoss": 2.91,
            "worldSize": 2,
            "engine": "DeepSpeedEngine",
            "hosts": ["a", "b"],
        }
    },
    "evaluate": {"evaluation": EVALUATION, "probe": PROBE},
    "export": {"artifact": {"uri": "pvc://x/y", "digest": DIGEST, "bytes": 269060552}},
}
CPU_PROFILE = {
    "devicesPerNode": 1,
    "memoryPerDevice": "4Gi",
    "cpuPerDevice": "1",
    "hostMemoryPerDevice": "3Gi",
}


def job_manifest(**changes: Any) -> Manifest:
    """A FineTuneJob as the API server returns it, before anything was done."""
    spec: dict[str, Any] = {
        "model": {"uri": "pvc://assets/models/smol"},
        "dataset": {"train": [{"uri": "pvc://assets/data/foldoc.jsonl"}]},
        "training": {"maxSteps": 30, "batchSize": 16, "maxSequenceLength": 128},
        "compute": {"profile": "cpu", "nodes": 2, "strategy": "ZeRO2"},
        "serve": {"endpoint": "glossary"},
    }
    spec.update(changes)
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {
            "name": "glossary",
            "namespace": NAMESPACE,
            "uid": JOB_UID,
            "generation": 1,
        },
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


class World:
    """The objects of a cluster, the time, and the answers of pods."""

    def __init__(self, job: Manifest | None = None) -> None:
        self.now = START
        self.settings = SETTINGS
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.answers: dict[str, HttpResponse] = {}
        self.events: list[EventRecord] = []
        self.decision = Decision()
        self.grace = 0
        """Seconds that running pods of a deleted Job take to end at most."""
        self._numbers = itertools.count(1)
        self.put(job or job_manifest())
        self.add_profile("cpu", CPU_PROFILE)
        self.add_claim("assets")

    # View

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return self.objects.get((kind, namespace, name))

    def list(self, kind: str, namespace: str | None = None) -> Sequence[Manifest]:
        return [
            found
            for (each, space, _), found in sorted(self.objects.items())
            if each == kind and namespace in (None, space)
        ]

    def list_by_label(
        self, kind: str, namespace: str, label: str, value: str
    ) -> Sequence[Manifest]:
        return [
            found
            for found in self.list(kind, namespace)
            if (found["metadata"].get("labels") or {}).get(label) == value
        ]

    def http_response(self, ask_id: str) -> HttpResponse | None:
        return self.answers.get(ask_id)

    def serves(self, group: str, kind: str) -> bool:
        return False

    # What is in it

    @property
    def job(self) -> Manifest:
        return self.objects["FineTuneJob", NAMESPACE, "glossary"]

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.job.get("status") or {})

    def condition(self, kind: str) -> dict[str, Any]:
        return next(c for c in self.status["conditions"] if c["type"] == kind)

    def stage(self, name: str) -> dict[str, Any]:
        return dict(next(s for s in self.status["stages"] if s["name"] == name))

    def names(self, kind: str) -> Sequence[str]:
        return [found["metadata"]["name"] for found in self.list(kind, NAMESPACE)]

    def put(self, manifest: Manifest) -> Manifest:
        meta = manifest["metadata"]
        self.objects[manifest["kind"], meta.get("namespace", ""), meta["name"]] = manifest
        return manifest

    def add_profile(self, name: str, spec: dict[str, Any]) -> None:
        self.put({"kind": "AcceleratorProfile", "metadata": {"name": name}, "spec": spec})

    def add_claim(self, name: str, phase: str = "Bound") -> None:
        meta = {"name": name, "namespace": NAMESPACE, "uid": f"claim-{name}"}
        self.put({"kind": "PersistentVolumeClaim", "metadata": meta, "status": {"phase": phase}})

    # What the operator does

    def reconcile(self) -> Decision:
        """One decision, carried out."""
        before = copy.deepcopy(self.objects)
        self.decision = reconcile_job(self.job, self, self.settings, self.now)
        assert self.objects == before, "a plan must not change what it sees"
        if self.decision.status is not None:
            json.dumps(self.decision.status, allow_nan=False)
            FineTuneJobStatus.model_validate(self.decision.status)  # as the CRD does
            changed = {**self.job, "status": dict(self.decision.status)}
            self.put(changed)
        for manifest in self.decision.create:
            self._create(manifest)
        for manifest in self.decision.apply:
            self._apply(manifest)
        for ref in self.decision.delete:
            self.delete(ref)
        self.events.extend(self.decision.events)
        return self.decision

    def settle(self) -> Decision:
        """Decisions until nothing changes any more, as the engine does after every write."""
        for _ in range(10):
            before = copy.deepcopy(self.objects)
            decision = self.reconcile()
            if self.objects == before:
                assert not decision.events, "an event without a change would be told for ever"
                return decision
        raise AssertionError("the plan does not come to rest")

    def _create(self, manifest: Manifest) -> None:
        made = copy.deepcopy(manifest)
        made["metadata"]["uid"] = f"uid-{next(self._numbers)}"
        made["metadata"]["creationTimestamp"] = self._time()
        key = (made["kind"], made["metadata"]["namespace"], made["metadata"]["name"])
        assert key not in self.objects, f"{key} is created twice"
        if made["kind"] == "PersistentVolumeClaim":
            made["status"] = {"phase": "Bound"}
        self.objects[key] = made

    def _apply(self, manifest: Manifest) -> None:
        meta = manifest["metadata"]
        key = (manifest["kind"], meta["namespace"], meta["name"])
        old = self.objects[key]
        spec = {**old["spec"], **copy.deepcopy(manifest["spec"])}
        self.objects[key] = {**old, "metadata": {**old["metadata"], **meta}, "spec": spec}

    def delete(self, ref: ObjectRef) -> None:
        """Background deletion: the Job goes at once, its pods follow, after `grace` if that is set
        and they run."""
        found = self.objects.pop((ref.kind, ref.namespace, ref.name))
        assert ref.uid in (None, found["metadata"]["uid"])
        for pod in self.pods(ref.name):
            if self.grace and pod["status"]["phase"] == "Running":
                self.mark_deleted(pod, self.grace)
            else:
                self.remove_pod(pod)

    # What Kubernetes does

    def report_progress(self, pod: Manifest, **progress: Any) -> None:
        """What a pod answers on /progress."""
        labels = pod["metadata"]["labels"]
        stage, attempt = labels[STAGE_LABEL], int(labels[ATTEMPT_LABEL])
        body = {"stage": stage, "attempt": attempt, "updatedAt": self.now.timestamp(), **progress}
        ask = f"progress/{pod['metadata']['uid']}"
        self.answers[ask] = HttpResponse(at=self.now.timestamp(), status=200, body=body)

    def edit(self, **changes: Any) -> None:
        """The user changes the spec; None removes a field."""
        spec = {**self.job["spec"], **changes}
        meta = {**self.job["metadata"], "generation": self.job["metadata"]["generation"] + 1}
        kept = {name: value for name, value in spec.items() if value is not None}
        self.put({**self.job, "metadata": meta, "spec": kept})

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def _time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def pods(self, job_name: str) -> Sequence[Manifest]:
        return [p for p in self.list("Pod", NAMESPACE) if p["metadata"]["job"] == job_name]

    def add_pods(self, job_name: str, phase: str = "Running") -> Sequence[Manifest]:
        """The pods of a Job, as Job controller, scheduler and kubelet leave them: on a node each,
        node1 and so on."""
        job = self.objects["Job", NAMESPACE, job_name]
        for index in range(job["spec"]["completions"]):
            labels = dict(job["spec"]["template"]["metadata"]["labels"])
            if job["spec"]["completionMode"] == "Indexed":
                labels["batch.kubernetes.io/job-completion-index"] = str(index)
            uid = f"pod-{next(self._numbers)}"
            self.put(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{job_name}-{index}-{uid}",
                        "namespace": NAMESPACE,
                        "uid": uid,
                        "labels": labels,
                        "job": job_name,
                        "creationTimestamp": self._time(),
                        "ownerReferences": [{"kind": "Job", "name": job_name}],
                    },
                    "spec": {"hostname": f"{job_name}-{index}", "nodeName": f"node{index + 1}"},
                    "status": {"phase": phase},
                }
            )
        for pod in self.pods(job_name):
            if phase == "Running":
                pod["status"]["podIP"] = "10.0.0.7"
        return self.pods(job_name)

    def set_waiting(self, pod: Manifest, reason: str, message: str) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        pod["status"] = {
            "phase": "Pending",
            "containerStatuses": [{"name": "trainer", "state": state}],
        }

    def set_unschedulable(self, pod: Manifest, message: str) -> None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": self._time(),
        }
        pod["status"] = {"phase": "Pending", "conditions": [condition]}

    def end_pod(
        self, pod: Manifest, code: int, message: str = "", reason: str | None = None
    ) -> None:
        terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "finishedAt": self._time(),
        }
        pod["status"] = {
            **pod["status"],
            "phase": "Succeeded" if code == 0 else "Failed",
            "containerStatuses": [{"name": "trainer", "state": {"terminated": terminated}}],
        }

    def mark_deleted(self, pod: Manifest, grace: int) -> None:
        """A deletion with grace: the time stamp is the deadline, as the API server writes it."""
        at = (self.now + timedelta(seconds=grace)).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod["metadata"] |= {"deletionTimestamp": at, "deletionGracePeriodSeconds": grace}

    def mark_disrupted(self, pod: Manifest, reason: str) -> None:
        pod["status"].setdefault("conditions", []).append(
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": reason,
                "message": "told so",
                "lastTransitionTime": self._time(),
            }
        )

    def remove_pod(self, pod: Manifest) -> None:
        del self.objects["Pod", NAMESPACE, pod["metadata"]["name"]]

    def end_job(self, job_name: str, kind: str) -> None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": self._time()}
        self.objects["Job", NAMESPACE, job_name]["status"] = {"conditions": [condition]}

    def succeed(self, stage: str, attempt: int = 1, **changes: Any) -> None:
        """Every pod of an attempt ends well, and index 0 leaves the stage's result."""
        for pod in self.pods(f"glossary-{stage}-{attempt}"):
            self.end_pod(pod, 0, result(stage, attempt, **changes))

    def run_stage(self, stage: str, attempt: int = 1) -> None:
        """A stage from its Job to its end."""
        self.settle()
        self.add_pods(f"glossary-{stage}-{attempt}")
        self.settle()
        self.tick(20)
        self.succeed(stage, attempt)
        self.settle()

    def run_until(self, stage: str) -> None:
        """Every stage before this one."""
        for name in ("prepare", "train", "evaluate", "export"):
            if name == stage:
                break
            self.run_stage(name)
        self.settle()

    def serve(self, state: str = "Active", digest: str = DIGEST, message: str = "") -> None:
        """What the endpoint's own controller writes."""
        endpoint = self.objects["ModelEndpoint", NAMESPACE, "glossary"]
        revision = {
            "revision": 1,
            "digest": digest,
            "uri": "pvc://w/a",
            "state": state,
            "message": message,
            "readyAt": self._time() if state == "Active" else None,
        }
        endpoint["status"] = {
            "phase": {"Active": "Ready", "Failed": "Failed"}.get(state, "Deploying"),
            "activeRevision": 1 if state == "Active" else None,
            "url": "http://glossary.team-a.svc/v1",
            "revisions": [revision],
        }


def result(stage: str, attempt: int = 1, **changes: Any) -> str:
    """A termination message."""
    fields = {"stage": stage, "attempt": attempt, "outcome": "Succeeded", **RESULTS[stage]}
    fields.update(changes)
    return StageResult.model_validate(fields).model_dump_json(by_alias=True, exclude_none=True)


def failed(stage: str, reason: str, attempt: int = 1, **failure: Any) -> str:
    """A termination message of a failure."""
    told = {"reason": reason, "message": f"{reason} it is", **failure}
    return json.dumps({"stage": stage, "attempt": attempt, "outcome": "Failed", "failure": told})


def training(world: World | None = None, attempt: int = 1) -> tuple[World, list[Manifest]]:
    """A world in which both pods of a training attempt run."""
    world = world or World()
    if attempt == 1:
        world.run_until("train")
    pods = world.add_pods(f"glossary-train-{attempt}")
    world.settle()
    assert world.status["phase"] == "Training"
    return world, list(pods)


def recover(world: World, seconds: float) -> None:
    """Let the back-off pass."""
    world.tick(seconds)
    world.settle()
