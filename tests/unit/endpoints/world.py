"""A small cluster in memory: the operator's own cache, and what stands around it.

`reconcile` plans from the cache and carries the decision out as the engine does (creates, applies,
deletes, status). `Crash` ends it between any two writes. Deployments and pods change only when a
test says so: `pods_appear`, `pods_are_ready`, and the answers of the model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
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
from finetune_operator.engine.cache import Cache
from finetune_operator.manifest import format_time

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NAMESPACE = "team-a"
NAME = "glossary"
ANSWER = "A compiler translates programs."


class Crash(Exception):
    """The operator ended between two writes."""


def digest(letter: str) -> str:
    """A digest that can be told from others by a letter."""
    return "sha256:" + letter * 64


def artifact(letter: str) -> dict[str, str]:
    """An artifact."""
    return {"uri": f"pvc://finetune-workspace/artifacts/job-{letter}", "digest": digest(letter)}


def probe(answer: str = ANSWER) -> dict[str, Any]:
    """A probe with its recorded answer."""
    return {
        "messages": [{"role": "user", "content": "What is a compiler?"}],
        "answer": answer,
        "maxTokens": 32,
    }


def endpoint(letter: str = "a", **spec: Any) -> Manifest:
    """A ModelEndpoint as the API server returns it."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "uid": "e0000000-0000-0000-0000-000000000001",
            "generation": 1,
        },
        "spec": {"artifact": artifact(letter), "probe": probe(), **spec},
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


class World:
    """One endpoint and everything around it."""

    def __init__(self, spec: Manifest | None = None, kserve: bool = False) -> None:
        self.answers: dict[str, HttpResponse] = {}
        self.cache = Cache(self.answers)
        self.now = START
        self.settings = Settings(trainer_image="trainer:v1", serving_image="vllm:v1")
        self.events: list[EventRecord] = []
        self.requests: tuple[HttpRequest, ...] = ()
        self.requeue_after: float | None = None
        self.writes = 0
        self.crash_after: int | None = None
        self._versions = itertools.count(1)
        if kserve:
            self.cache.set_served_kinds(frozenset({("serving.kserve.io", "InferenceService")}))
        self.put(profile())
        self.put(spec or endpoint())

    # The API server.

    def put(self, manifest: Manifest) -> Manifest:
        """Store an object as a new version of itself."""
        stored = copy.deepcopy(manifest)
        metadata = stored["metadata"]
        version = next(self._versions)
        metadata["resourceVersion"] = str(version)
        metadata.setdefault("uid", f"uid-{version}")
        metadata.setdefault("creationTimestamp", format_time(self.now))
        assert self.cache.put(stored)
        return stored

    def get(self, kind: str, name: str) -> Manifest | None:
        """One object of the namespace."""
        return self.cache.get(kind, NAMESPACE, name)

    def need(self, kind: str, name: str) -> Manifest:
        """One object that must be there."""
        found = self.get(kind, name)
        assert found is not None, f"no {kind} {name}"
        return found

    def change(
        self, kind: str, name: str, patch: Mapping[str, Any], namespace: str | None = None
    ) -> None:
        """Merge into an object."""
        found = self.cache.get(kind, NAMESPACE if namespace is None else namespace, name)
        assert found is not None
        self.put(merged(found, patch))

    def remove(self, kind: str, name: str) -> None:
        """Delete an object, and what it owns."""
        found = self.need(kind, name)
        uid = found["metadata"]["uid"]
        self.cache.remove(kind, NAMESPACE, name, uid)
        for each in self.cache.list("Pod", NAMESPACE):
            if any(ref["uid"] == uid for ref in each["metadata"].get("ownerReferences", [])):
                self.remove("Pod", each["metadata"]["name"])

    # The user.

    def edit(self, **spec: Any) -> None:
        """Change the endpoint's spec."""
        found = self.need("ModelEndpoint", NAME)
        generation = found["metadata"]["generation"] + 1
        changed = copy.deepcopy(found)
        changed["spec"].update(spec)
        changed["metadata"]["generation"] = generation
        self.put(changed)

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
        """The label that the pointer Service selects by."""
        service = self.get("Service", NAME)
        return service["spec"]["selector"]["app"] if service else None

    def names(self, kind: str) -> list[str]:
        """Names of the objects of a kind."""
        return [each["metadata"]["name"] for each in self.cache.list(kind, NAMESPACE)]

    # The operator.

    def decide(self) -> Decision:
        """What the operator would do now."""
        found = self.need("ModelEndpoint", NAME)
        before = copy.deepcopy(found)
        decision = reconcile_endpoint(found, self.cache, self.settings, self.now)
        assert found == before, "a plan must not change what it sees"
        return decision

    def reconcile(self) -> Decision:
        """Plan once and carry it out."""
        decision = self.decide()
        for manifest in decision.create:
            self._write(lambda m=manifest: self._create(m))
        for manifest in decision.apply:
            self._write(lambda m=manifest: self._apply(m))
        for ref in decision.delete:
            self._write(lambda r=ref: self.remove(r.kind, r.name))
        if decision.status is not None and decision.status != self.status:
            self._write(lambda: self._set_status(decision.status or {}))
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
        """A new operator process: answers to questions are forgotten."""
        self.answers.clear()
        self.requests = ()

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def _write(self, action: Any) -> None:
        if self.crash_after is not None and self.writes >= self.crash_after:
            raise Crash
        action()
        self.writes += 1

    def _create(self, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        assert self.get(manifest["kind"], metadata["name"]) is None, "name taken"
        self.put(merged(manifest, {"metadata": {"generation": 1}}))

    def _apply(self, manifest: Manifest) -> None:
        found = self.need(manifest["kind"], manifest["metadata"]["name"])
        changed = merged(found, manifest)
        if changed["spec"] != found["spec"]:
            changed["metadata"]["generation"] += 1
        self.put(changed)

    def _set_status(self, status: Mapping[str, Any]) -> None:
        changed = copy.deepcopy(self.need("ModelEndpoint", NAME))
        changed["status"] = dict(status)
        self.put(changed)

    # The Deployment controller, the kubelet and vLLM.

    def add_pods(self, number: int, count: int = 1, **status: Any) -> list[str]:
        """The controller makes the pods of a revision."""
        child = self.need("Deployment", f"{NAME}-r{number}")
        template = child["spec"]["template"]
        names = [f"{NAME}-r{number}-{index}" for index in range(count)]
        for index, name in enumerate(names):
            reference = {"kind": "Deployment", "uid": child["metadata"]["uid"]}
            if self.get("Pod", name) is None:
                self.put(
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
                        "status": {"phase": "Pending", "podIP": f"10.0.{number}.{index}", **status},
                    }
                )
        return names

    def make_pods_ready(self, number: int, count: int = 1) -> None:
        """The pods of a revision answer their probes, and the Deployment's status says so."""
        for name in self.add_pods(number, count):
            self.set_pod_ready(name, ready=True)
        child = self.need("Deployment", f"{NAME}-r{number}")
        status = {
            "observedGeneration": child["metadata"]["generation"],
            "updatedReplicas": count,
            "readyReplicas": count,
        }
        self.change("Deployment", f"{NAME}-r{number}", {"status": status})

    def set_pod_ready(self, name: str, ready: bool) -> None:
        """Set the Ready condition of a pod."""
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "lastTransitionTime": format_time(self.now),
        }
        self.change("Pod", name, {"status": {"phase": "Running", "conditions": [condition]}})

    def set_container(self, name: str, restarts: int = 0, **state: Any) -> None:
        """Set the container's state in the pod's status; `last` is how it ended before."""
        last = state.pop("last", {})
        container = {
            "name": "vllm",
            "restartCount": restarts,
            "state": state,
            "lastState": {"terminated": last} if last else {},
        }
        self.change("Pod", name, {"status": {"containerStatuses": [container]}})

    def answer_requests(
        self, answer: str = ANSWER, status: int = 200, error: str | None = None
    ) -> None:
        """vLLM answers everything that it is asked, unless there is an answer already."""
        for ask in self.requests:
            if ask.id in self.answers and self.answers[ask.id].status is not None:
                continue
            body: Any = {"data": [{"id": NAME}]}
            if ask.body is not None:
                body = {"choices": [{"message": {"content": answer}}]}
            if status != 200:
                body = {"error": {"message": "no"}}
            reply = HttpResponse(at=self.now.timestamp(), status=status, body=body)
            if error:
                reply = HttpResponse(at=self.now.timestamp(), error=error)
            self.answers[ask.id] = reply

    def roll_out(self, number: int = 1, count: int = 1) -> None:
        """Let a revision come up and pass its checks."""
        self.settle()
        self.make_pods_ready(number, count)
        for _ in range(4):
            self.settle()
            self.answer_requests()
        self.settle()
        assert self.status["activeRevision"] == number, self.status["message"]


def merged(old: Any, patch: Any) -> Any:
    """JSON merge-patch without deletion."""
    if not isinstance(old, Mapping) or not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    out = {**copy.deepcopy(dict(old))}
    for key, value in patch.items():
        out[key] = merged(out.get(key), value)
    return out


def revision_of(pod: Manifest) -> str:
    """The revision label of a pod."""
    return str(pod["metadata"]["labels"][REVISION_LABEL])
