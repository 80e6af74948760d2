"""Deployments, and the model servers in their pods, as far as an endpoint sees them.

The pods run on no node of the simulation, so that the faults of nodes stay those of jobs. Servers
answer as evaluation recorded it.
"""

from __future__ import annotations

from typing import Any

from finetune_operator.decision import ENDPOINT_LABEL, Manifest
from finetune_operator.resources.vllm import ARTIFACT_ANNOTATION

from tests.sim.clock import Clock
from tests.sim.server import ApiServer, Happening
from tests.unit.jobs.world import PROBE

SYNC_SECONDS = 0.3
START_SECONDS = 2.0


class Deployments:
    """Creates the pods of Deployments, and makes them ready."""

    def __init__(self, server: ApiServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._pods = 0
        self.ready_uris: set[str] = set()
        """Artifacts that a server has loaded."""
        server.listeners.append(self._seen)

    def answer(self, url: str) -> Any:
        """The response of the server at an address; None if there is none."""
        address, _, path = url.removeprefix("http://").partition("/")
        for pod in self._server.list("Pod"):
            if pod["status"].get("podIP") == address.split(":")[0] and is_serving(pod):
                if path == "v1/models":
                    return {"data": [{"id": pod["metadata"]["labels"][ENDPOINT_LABEL]}]}
                return {"choices": [{"message": {"content": PROBE["answer"]}}]}
        return None

    def _seen(self, what: Happening, found: Manifest, _old: Manifest | None) -> None:
        if found["kind"] == "Deployment" and what != "DELETED":
            self._clock.after(SYNC_SECONDS, self._sync, found)

    def _sync(self, seen: Manifest) -> None:
        found = self._find(seen)
        if found is None:
            return
        pods, wanted = self._pods_of(found), found["spec"]["replicas"]
        for pod in pods[wanted:]:
            self._server.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
        for _ in range(wanted - len(pods)):
            self._create(found)
        self._report(found)

    def _create(self, deployment: Manifest) -> None:
        self._pods += 1
        meta, template = deployment["metadata"], deployment["spec"]["template"]
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": meta["name"]}
        pod = self._server.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{meta['name']}-{self._pods}",
                    "namespace": meta["namespace"],
                    "labels": template["metadata"]["labels"],
                    "ownerReferences": [{**owner, "uid": meta["uid"], "controller": True}],
                },
                "spec": template["spec"],
            }
        )
        address = f"10.200.{self._pods // 250}.{self._pods % 250}"
        self._clock.after(START_SECONDS, self._start, deployment, pod, address)

    def _start(self, deployment: Manifest, pod: Manifest, address: str) -> None:
        found = self._find(deployment)
        meta = pod["metadata"]
        if found is None or self._server.find("Pod", meta["namespace"], meta["name"]) is None:
            return
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": self._clock.text()}
        status = {"phase": "Running", "podIP": address, "conditions": [ready]}
        self._server.patch("Pod", meta["namespace"], meta["name"], {"status": status}, "status")
        self.ready_uris.add(found["metadata"]["annotations"][ARTIFACT_ANNOTATION])
        self._report(found)

    def _report(self, deployment: Manifest) -> None:
        meta, pods = deployment["metadata"], self._pods_of(deployment)
        ready = len([pod for pod in pods if pod["status"].get("podIP")])
        status = {
            "observedGeneration": meta["generation"],
            "updatedReplicas": len(pods),
            "readyReplicas": ready,
        }
        namespace, name = meta["namespace"], meta["name"]
        self._server.patch("Deployment", namespace, name, {"status": status}, "status")

    def _find(self, seen: Manifest) -> Manifest | None:
        meta = seen["metadata"]
        found = self._server.find("Deployment", meta["namespace"], meta["name"])
        return found if found is not None and found["metadata"]["uid"] == meta["uid"] else None

    def _pods_of(self, deployment: Manifest) -> list[Manifest]:
        uid = deployment["metadata"]["uid"]
        pods = self._server.list("Pod", deployment["metadata"]["namespace"])
        return [pod for pod in pods if pod["metadata"]["ownerReferences"][0]["uid"] == uid]


def is_serving(pod: Manifest) -> bool:
    """Whether a pod belongs to an endpoint."""
    return ENDPOINT_LABEL in (pod["metadata"].get("labels") or {})
