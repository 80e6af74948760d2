"""An endpoint in the simulation's API server, for tests of its plan.

`reconcile` plans and carries the decision out as the engine does (status, creates, applies,
deletes). `Crash` ends it between any two writes. Deployments and pods change only when a test says
so: `add_pods`, `make_pods_ready`, and the responses of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from finetune_operator.decision import (
    REVISION_LABEL,
    Decision,
    EventRecord,
    HttpRequest,
    HttpResponse,
    Manifest,
    Settings,
)
from finetune_operator.endpoints.plan import reconcile_endpoint

from tests.unit.cluster import Cluster

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NAMESPACE = "team-a"
NAME = "glossary"
ANSWER = "A compiler translates programs."


class Crash(Exception):
    """The operator ended between two writes."""


def digest(letter: str) -> str:
    """A digest that a letter distinguishes from others."""
    return "sha256:" + letter * 64


def artifact(letter: str) -> dict[str, str]:
    return {"uri": f"pvc://finetune-workspace/artifacts/job-{letter}", "digest": digest(letter)}


def probe(answer: str = ANSWER) -> dict[str, Any]:
    """A probe with its recorded answer."""
    return {
        "messages": [{"role": "user", "content": "What is a compiler?"}],
        "answer": answer,
        "maxTokens": 32,
    }


def endpoint(letter: str = "a", **spec: Any) -> Manifest:
    """A ModelEndpoint as the API server returns it; None leaves a field out."""
    fields = {"artifact": artifact(letter), "probe": probe(), **spec}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "uid": "e0000000-0000-0000-0000-000000000001",
            "generation": 1,
        },
        "spec": {key: value for key, value in fields.items() if value is not None},
        "status": {"observedGeneration": -1},
    }


def following(**spec: Any) -> Manifest:
    """A ModelEndpoint that serves what jobs export for it."""
    return endpoint(artifact=None, probe=None, **spec)


def exporting_job(letter: str, minute: int = 0, **changes: Any) -> Manifest:
    """A FineTuneJob that was created in that minute and has handed its model over."""
    name = f"job-{letter}"
    artifact_ref = {**artifact(letter), "bytes": 1}
    stages = [{"name": "serve", "state": "Running", "attempt": 1}]
    status = {"artifact": artifact_ref, "probe": probe(), "stages": stages, **changes}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "creationTimestamp": f"2026-11-21T11:{minute:02}:00Z",
        },
        "spec": {"serve": {"endpoint": NAME}},
        "status": status,
    }


def profile(name: str = "cpu", **spec: Any) -> Manifest:
    """An AcceleratorProfile for a CPU pool."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AcceleratorProfile",
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {
            "default": True,
            "memoryPerDevice": "4Gi",
            "cpuPerDevice": "1",
            "hostMemoryPerDevice": "4Gi",
            "serving": {"dtype": "float32", "maxModelLen": 1024, "args": ["--enforce-eager"]},
            **spec,
        },
    }


GPU_PROFILE: dict[str, Any] = {
    "default": False,
    "resourceName": "nvidia.com/gpu",
    "devicesPerNode": 8,
    "memoryPerDevice": "80Gi",
    "cpuPerDevice": "8",
    "hostMemoryPerDevice": "64Gi",
    "sharedMemory": "8Gi",
    "nodeSelector": {"pool": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
    "serving": {
        "dtype": "bfloat16",
        "image": "registry.example/vllm:v1",
        "args": ["--override-generation-config", '{"a": {"b": {{"c": 1}}}}'],
    },
}


class World(Cluster):
    """One endpoint and everything around it, in the simulation's API server."""

    def __init__(self, spec: Manifest | None = None, kserve: bool = False) -> None:
        super().__init__(START, NAMESPACE)
        self.settings = Settings(trainer_image="trainer:v1", serving_image="vllm:v1")
        self.events: list[EventRecord] = []
        self.requests: tuple[HttpRequest, ...] = ()
        self.requeue_after: float | None = None
        self.writes = 0
        self.crash_after: int | None = None
        if kserve:
            self.served = frozenset({("serving.kserve.io", "InferenceService")})
        self.load(profile())
        self.load(spec or endpoint())

    # The user.

    def edit(self, **spec: Any) -> None:
        """The user replaces top-level fields of the spec; None removes a field."""
        self.replace_fields(self.need("ModelEndpoint", NAME), spec)

    @property
    def status(self) -> dict[str, Any]:
        """The endpoint's status."""
        found: dict[str, Any] = self.need("ModelEndpoint", NAME).get("status", {})
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        found = next(each for each in self.status["conditions"] if each["type"] == kind)
        return found["status"], found["reason"]

    def states(self) -> dict[int, str]:
        """Revisions and their states."""
        return {each["revision"]: each["state"] for each in self.status["revisions"]}

    def selected_app(self) -> str | None:
        """The label that the endpoint's Service selects by."""
        service = self.find("Service", NAME)
        return service["spec"]["selector"]["app"] if service else None

    # The operator.

    def decide(self) -> Decision:
        """What the operator would do now."""
        before = self.snapshot()
        found = self.need("ModelEndpoint", NAME)
        decision = reconcile_endpoint(found, self, self.settings, self.now)
        assert self.snapshot() == before, "a plan must not change its input"
        return decision

    def reconcile(self) -> Decision:
        """Plan once and carry it out."""
        planned_from = self.need("ModelEndpoint", NAME)
        decision = self.decide()
        if decision.status is not None and decision.status != self.status:
            status = decision.status
            self._write(lambda: self.write_status(planned_from, status))
        for manifest in decision.create:
            self._write(lambda m=manifest: self.server.create(m))
        for manifest in decision.apply:
            self._write(lambda m=manifest: self.server.apply(m))
        for ref in decision.delete:
            self._write(lambda r=ref: self.delete(r.kind, r.name))
        self.events += decision.events
        self.requests = decision.requests
        self.requeue_after = decision.requeue_after
        return decision

    def settle(self) -> None:
        """Reconcile until nothing is written any more."""
        for _ in range(10):
            before = self.writes
            self.reconcile()
            if self.writes == before:
                return
        raise AssertionError("the plan never comes to rest")

    def restart(self) -> None:
        """A new operator process has no responses yet."""
        self.responses.clear()
        self.requests = ()

    def delete(self, kind: str, name: str) -> None:
        """Delete an object, and the pods that it owns."""
        uid = self.remove(kind, name)["metadata"]["uid"]
        for pod in self.list("Pod", NAMESPACE):
            if any(ref["uid"] == uid for ref in pod["metadata"].get("ownerReferences", [])):
                self.remove("Pod", pod["metadata"]["name"])

    def _write(self, action: Any) -> None:
        if self.crash_after is not None and self.writes >= self.crash_after:
            raise Crash
        action()
        self.writes += 1

    # The Deployment controller, the kubelet and vLLM.

    def add_pods(self, number: int, count: int = 1, **status: Any) -> list[str]:
        """The controller creates the pods of a revision."""
        child = self.need("Deployment", f"{NAME}-r{number}")
        template = child["spec"]["template"]
        names = [f"{NAME}-r{number}-{index}" for index in range(count)]
        for index, name in enumerate(names):
            reference = {"kind": "Deployment", "uid": child["metadata"]["uid"]}
            if self.find("Pod", name) is not None:
                continue
            pod = self.server.create(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": name,
                        "namespace": NAMESPACE,
                        "labels": template["metadata"]["labels"],
                        "ownerReferences": [reference],
                    },
                    "spec": template["spec"],
                }
            )
            self.set_status(pod, podIP=f"10.0.{number}.{index}", **status)
        return names

    def make_pods_ready(self, number: int, count: int = 1) -> None:
        """The pods of a revision pass their probes, and the Deployment's status reports it."""
        for name in self.add_pods(number, count):
            self.set_pod_ready(name, ready=True)
        child = self.need("Deployment", f"{NAME}-r{number}")
        generation = child["metadata"]["generation"]
        ready = {"updatedReplicas": count, "readyReplicas": count}
        self.set_status(child, observedGeneration=generation, **ready)

    def set_pod_ready(self, name: str, ready: bool) -> None:
        """Set the Ready condition of a pod."""
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "lastTransitionTime": self.time(),
        }
        self.set_status(self.need("Pod", name), phase="Running", conditions=[condition])

    def set_container(self, name: str, restarts: int = 0, **state: Any) -> None:
        """Set the container's state in the pod's status; `last` is how it ended before."""
        last = state.pop("last", {})
        container = {
            "name": "vllm",
            "restartCount": restarts,
            "state": state,
            "lastState": {"terminated": last} if last else {},
        }
        self.set_status(self.need("Pod", name), containerStatuses=[container])

    def answer_requests(
        self, answer: str = ANSWER, status: int = 200, error: str | None = None
    ) -> None:
        """vLLM responds to every request that has no response yet."""
        for request in self.requests:
            if request.id in self.responses and self.responses[request.id].status is not None:
                continue
            body: Any = {"data": [{"id": NAME}]}
            if request.body is not None:
                body = {"choices": [{"message": {"content": answer}}]}
            if status != 200:
                body = {"error": {"message": "no"}}
            reply = HttpResponse(at=self.now.timestamp(), status=status, body=body)
            if error:
                reply = HttpResponse(at=self.now.timestamp(), error=error)
            self.responses[request.id] = reply

    def roll_out(self, number: int = 1, count: int = 1) -> None:
        """Let a revision come up and pass its checks."""
        self.settle()
        self.make_pods_ready(number, count)
        for _ in range(4):
            self.settle()
            self.answer_requests()
        self.settle()
        assert self.status["activeRevision"] == number, self.status["message"]

    def change(
        self, kind: str, name: str, patch: Mapping[str, Any], namespace: str = NAMESPACE
    ) -> None:
        """Merge into an object, its status included."""
        found = self.server.get(kind, namespace, name)
        if rest := {field: value for field, value in patch.items() if field != "status"}:
            self.patch(found, rest)
        if "status" in patch:
            self.set_status(found, **patch["status"])


def revision_of(pod: Manifest) -> str:
    """The revision label of a pod."""
    return str(pod["metadata"]["labels"][REVISION_LABEL])
