"""A job in the simulation's API server, for tests of its plan.

`World` carries out a Decision as the engine does, and acts as the Job controller, the scheduler and
the kubelet when a test says so. Time passes only when a test lets it.
"""

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.stage_result import StageResult
from finetune_operator.decision import (
    ATTEMPT_LABEL,
    STAGE_LABEL,
    Decision,
    EventQuery,
    EventRecord,
    HttpResponse,
    Manifest,
    ObjectRef,
    Settings,
)
from finetune_operator.exported_models import read_source
from finetune_operator.jobs.plan import reconcile_job

from tests.unit.cluster import Cluster, owner_of

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
    "comparisons": [
        {
            "metric": "loss",
            "value": 3.656,
            "tuned": 2.845,
            "improvement": 0.811,
            "low": 0.735,
            "high": 0.888,
            "relativePercent": 22.2,
            "relativeLowPercent": 20.1,
            "relativeHighPercent": 24.3,
        }
    ],
    "tokens": 9000,
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
            "creationTimestamp": "2026-01-05T12:00:00Z",
        },
        "spec": {key: value for key, value in spec.items() if value is not None},
        "status": {"observedGeneration": -1},
    }


class World(Cluster):
    """One job in the simulation's API server, the time, and the responses of pods."""

    def __init__(self, job: Manifest | None = None) -> None:
        super().__init__(START, NAMESPACE)
        self.settings = SETTINGS
        self.events: list[EventRecord] = []
        self.decision = Decision()
        self.grace = 0
        """Seconds that running pods of a deleted Job take to end at most."""
        self._numbers = itertools.count(1)
        self.load(job or job_manifest())
        self.add_profile("cpu", CPU_PROFILE)
        self.add_claim("assets")

    @property
    def job(self) -> Manifest:
        return self.need("FineTuneJob", "glossary")

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.job.get("status") or {})

    def condition(self, kind: str) -> dict[str, Any]:
        return next(c for c in self.status["conditions"] if c["type"] == kind)

    def stage(self, name: str) -> dict[str, Any]:
        return dict(next(s for s in self.status["stages"] if s["name"] == name))

    def container(self, stage: str) -> dict[str, Any]:
        """The container of a stage's first attempt."""
        pod = self.need("Job", f"glossary-{stage}-1")["spec"]["template"]["spec"]
        return dict(pod["containers"][0])

    def add_profile(self, name: str, spec: dict[str, Any]) -> None:
        meta = {"name": name, "uid": f"profile-{name}"}
        self.load({"kind": "AcceleratorProfile", "metadata": meta, "spec": spec})

    def add_claim(self, name: str, phase: str = "Bound") -> None:
        meta = {"name": name, "namespace": NAMESPACE, "uid": f"claim-{name}"}
        self.load({"kind": "PersistentVolumeClaim", "metadata": meta, "status": {"phase": phase}})

    # What the operator does

    def reconcile(self) -> Decision:
        """One decision, carried out."""
        self.answer_queries()
        before = self.snapshot()
        self.decision = reconcile_job(self.job, self, self.settings, self.now)
        assert self.snapshot() == before, "a plan must not change its input"
        if self.decision.status is not None:
            json.dumps(self.decision.status, allow_nan=False)
            FineTuneJobStatus.model_validate(self.decision.status)  # as the CRD does
            self.write_status(self.job, self.decision.status)
        for manifest in self.decision.create:
            self.create(manifest)
        for manifest in self.decision.apply:
            self.server.apply(manifest)
        for ref in self.decision.delete:
            self.delete(ref)
        self.events.extend(self.decision.events)
        return self.decision

    def settle(self) -> Decision:
        """Decisions until nothing changes any more, as the engine does after every write."""
        for _ in range(10):
            before = self.server.version
            decision = self.reconcile()
            if self.server.version == before:
                assert not decision.events, "an event without a change would be repeated"
                return decision
        raise AssertionError("the plan does not come to rest")

    def create(self, manifest: Manifest) -> None:
        """POST; the volume controller binds a claim at once."""
        made = self.server.create(manifest)
        if made["kind"] == "PersistentVolumeClaim":
            self.load({**made, "status": {"phase": "Bound"}})

    def delete(self, ref: ObjectRef) -> None:
        """Background deletion: the Job goes at once, its pods follow, after `grace` if that is set
        and they run."""
        pods = self.pods(ref.name)
        self.server.delete(ref.kind, ref.namespace, ref.name, ref.uid)
        for pod in pods:
            if self.grace and pod["status"]["phase"] == "Running":
                self.mark_deleted(pod, self.grace)
            else:
                self.remove_pod(pod)

    # What the user and Kubernetes do

    def report_progress(self, pod: Manifest, **progress: Any) -> None:
        """What a pod returns on /progress."""
        labels = pod["metadata"]["labels"]
        stage, attempt = labels[STAGE_LABEL], int(labels[ATTEMPT_LABEL])
        body = {"stage": stage, "attempt": attempt, "updatedAt": self.now.timestamp(), **progress}
        request = f"progress/{pod['metadata']['uid']}"
        self.responses[request] = HttpResponse(at=self.now.timestamp(), status=200, body=body)

    def edit(self, **changes: Any) -> None:
        """The user replaces top-level fields of the spec; None removes a field."""
        self.replace_fields(self.job, changes)

    def pods(self, job_name: str) -> Sequence[Manifest]:
        return [p for p in self.list("Pod", NAMESPACE) if owner_of(p) == job_name]

    def add_pods(self, job_name: str, phase: str = "Running") -> Sequence[Manifest]:
        """The pods of a Job, as Job controller, scheduler and kubelet leave them: on a node each,
        node1 and so on."""
        job = self.need("Job", job_name)
        for index in range(job["spec"]["completions"]):
            labels = dict(job["spec"]["template"]["metadata"]["labels"])
            if job["spec"]["completionMode"] == "Indexed":
                labels["batch.kubernetes.io/job-completion-index"] = str(index)
            owner = {"kind": "Job", "name": job_name, "uid": job["metadata"]["uid"]}
            pod = self.server.create(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{job_name}-{index}-{next(self._numbers)}",
                        "namespace": NAMESPACE,
                        "labels": labels,
                        "ownerReferences": [owner],
                    },
                    "spec": {"hostname": f"{job_name}-{index}", "nodeName": f"node{index + 1}"},
                }
            )
            self.set_status(pod, phase=phase)
        for pod in self.pods(job_name):
            if phase == "Running":
                self.set_status(pod, podIP="10.0.0.7")
        return self.pods(job_name)

    def answer_queries(self) -> None:
        """The API server answers the queries for events."""
        for query in self.decision.requests:
            if isinstance(query, EventQuery):
                found = [e for e in self.list("Event", NAMESPACE) if is_about(e, query)]
                at = self.now.timestamp()
                self.responses[query.id] = HttpResponse(at=at, status=200, body=found)

    def refuse_pods(self, job_name: str, message: str, **changes: Any) -> Manifest:
        """The event by which the Job controller reports that the API server refused a pod."""
        job, number = self.need("Job", job_name), next(self._numbers)
        involved = {"kind": "Job", "namespace": NAMESPACE, "name": job_name}
        event = {
            "kind": "Event",
            "metadata": {"name": f"{job_name}.{number}", "namespace": NAMESPACE},
            "involvedObject": {**involved, "uid": job["metadata"]["uid"]},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": message,
            "lastTimestamp": self.time(),
        }
        return self.load({**event, **changes})

    def set_waiting(self, pod: Manifest, reason: str, message: str) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        statuses = [{"name": "trainer", "state": state}]
        self.replace_status(pod, {"phase": "Pending", "containerStatuses": statuses})

    def set_unschedulable(self, pod: Manifest, message: str) -> None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": self.time(),
        }
        self.replace_fields(pod, {"nodeName": None})
        self.replace_status(pod, {"phase": "Pending", "conditions": [condition]})

    def schedule(self, pod: Manifest, node: str) -> None:
        """The scheduler finds a node, and the pod runs there."""
        self.replace_fields(pod, {"nodeName": node})
        self.replace_status(pod, {"phase": "Running", "podIP": "10.0.0.8"})

    def end_pod(
        self,
        pod: Manifest,
        code: int,
        message: str = "",
        reason: str | None = None,
        clock: float = 0.0,
    ) -> None:
        """The container ends; the clock of its kubelet is `clock` seconds ahead."""
        terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "finishedAt": self.time(clock),
        }
        self.set_status(
            pod,
            phase="Succeeded" if code == 0 else "Failed",
            containerStatuses=[{"name": "trainer", "state": {"terminated": terminated}}],
        )

    def mark_deleted(self, pod: Manifest, grace: int) -> None:
        """A deletion with grace: the time stamp is the deadline, as the API server writes it."""
        meta = pod["metadata"]
        self.server.delete("Pod", NAMESPACE, meta["name"], grace=grace)

    def mark_disrupted(self, pod: Manifest, reason: str, message: str = "by a test") -> None:
        target = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": self.time(),
        }
        conditions = self.current(pod)["status"].get("conditions", [])
        self.set_status(pod, conditions=[*conditions, target])

    def remove_pod(self, pod: Manifest) -> None:
        self.remove("Pod", pod["metadata"]["name"])

    def end_job(self, job_name: str, kind: str) -> None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": self.time()}
        self.replace_status(self.need("Job", job_name), {"conditions": [condition]})

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

    def serve(
        self,
        state: str = "Active",
        digest: str = DIGEST,
        message: str = "",
        retry_at: str | None = None,
        latest: Manifest | None = None,
    ) -> None:
        """What the endpoint's own reconcile writes; `latest` is the job whose model it follows."""
        revision = {
            "revision": 1,
            "digest": digest,
            "uri": self.status["artifact"]["uri"],
            "state": state,
            "message": message,
            "readyAt": self.time() if state == "Active" else None,
            "retryAt": retry_at,
        }
        status = {
            "message": f"revision 1: {message}" if message else "",
            "phase": {"Active": "Ready", "Failed": "Failed"}.get(state, "Deploying"),
            "activeRevision": 1 if state == "Active" else None,
            "url": "http://glossary.team-a.svc/v1",
            "revisions": [revision],
            "latest": describe_model(latest or self.job),
        }
        self.replace_status(self.need("ModelEndpoint", "glossary"), status)


def describe_model(job: Manifest) -> dict[str, Any]:
    """What the status of an endpoint records about the model of a job."""
    source = read_source(job).to_wire()
    return {"job": source, "uri": "pvc://w/a", "digest": DIGEST}


def is_about(event: Manifest, query: EventQuery) -> bool:
    """Whether the API server would return the event."""
    return (event["involvedObject"]["uid"], event["reason"]) == (query.uid, query.reason)


def result(stage: str, attempt: int = 1, **changes: Any) -> str:
    """A termination message."""
    fields = {"stage": stage, "attempt": attempt, "outcome": "Succeeded", **RESULTS[stage]}
    fields.update(changes)
    return StageResult.model_validate(fields).model_dump_json(by_alias=True, exclude_none=True)


def failed(stage: str, reason: str, attempt: int = 1, **failure: Any) -> str:
    """A termination message of a failure."""
    body = {"reason": reason, "message": f"{reason} it is", **failure}
    return json.dumps({"stage": stage, "attempt": attempt, "outcome": "Failed", "failure": body})


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
