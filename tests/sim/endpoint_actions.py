"""What users do with the endpoint, and other jobs that serve in it.

Another job is suspended until a history lets it export: what happens in between is the same as for
the job of the history, whose stages the operator runs.
"""

from __future__ import annotations

from typing import Any

from finetune_operator.decision import Manifest
from finetune_operator.names import artifact_path, artifact_uri

from tests.sim.artifacts import Artifacts
from tests.sim.clock import Clock
from tests.sim.endpoint_invariants import CLAIM, EndpointInvariants
from tests.sim.server import ApiServer
from tests.unit.jobs.world import DIGEST, NAMESPACE, PROBE, job_manifest

ENDPOINT = "bot"
OTHERS = ("another-1", "another-2", "other-3")
"""The first two sort before the job of the history, which decides when they are as old."""


class EndpointActions:
    """Actions of a history on the endpoint of its job."""

    server: ApiServer
    clock: Clock
    artifacts: Artifacts
    endpoints: EndpointInvariants

    @property
    def endpoint(self) -> Manifest | None:
        """The ModelEndpoint, while it exists."""
        return self.server.find("ModelEndpoint", NAMESPACE, ENDPOINT)

    def do_apply_endpoint(self, _which: int, _seconds: float) -> bool:
        """A GitOps tool applies an endpoint that follows."""
        if self.endpoint is not None:
            return False
        metadata = {"name": ENDPOINT, "namespace": NAMESPACE}
        made = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelEndpoint"}
        with self.endpoints.user():
            self.server.create({**made, "metadata": metadata, "spec": {"profile": "cpu"}})
        return True

    def do_pin(self, which: int, _seconds: float) -> bool:
        """A user sets the artifact of the endpoint."""
        folders = sorted(self.artifacts.folders)
        if not folders:
            return False
        uri = f"pvc://{CLAIM}/{folders[which % len(folders)]}"
        return self._edit_endpoint({"artifact": {"uri": uri, "digest": DIGEST}})

    def do_unpin(self, _which: int, _seconds: float) -> bool:
        """A user removes the artifact from the endpoint, which follows from then on."""
        found = self.endpoint
        is_pinned = found is not None and "artifact" in found["spec"]
        return is_pinned and self._edit_endpoint({"artifact": None})

    def do_scale(self, which: int, _seconds: float) -> bool:
        """kubectl scale."""
        return self._edit_endpoint({"replicas": 1 + which % 3})

    def do_delete_endpoint(self, _which: int, _seconds: float) -> bool:
        """kubectl delete modelendpoint."""
        if self.endpoint is None:
            return False
        self.server.delete("ModelEndpoint", NAMESPACE, ENDPOINT)
        return True

    def do_create_other_job(self, which: int, _seconds: float) -> bool:
        """Another job that will serve in the endpoint."""
        name = OTHERS[which % len(OTHERS)]
        if self.server.find("FineTuneJob", NAMESPACE, name) is not None:
            return False
        self.create_other_job(name)
        return True

    def do_other_job_exports(self, which: int, _seconds: float) -> bool:
        """Another job passes its gate, exports its model and hands it over."""
        waiting = [
            job
            for job in self.server.list("FineTuneJob", NAMESPACE)
            if job["metadata"]["name"] in OTHERS and not (job.get("status") or {}).get("artifact")
        ]
        if not waiting:
            return False
        self._export(waiting[which % len(waiting)])
        return True

    def do_delete_other_job(self, which: int, _seconds: float) -> bool:
        """kubectl delete finetunejob, or its time to live."""
        name = OTHERS[which % len(OTHERS)]
        if self.server.find("FineTuneJob", NAMESPACE, name) is None:
            return False
        self.server.delete("FineTuneJob", NAMESPACE, name)
        return True

    def create_other_job(self, name: str) -> None:
        made = job_manifest(serve={"endpoint": ENDPOINT}, suspend=True)
        self.server.create({**made, "metadata": {"name": name, "namespace": NAMESPACE}})

    def _export(self, job: Manifest) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        self.artifacts.add(artifact_path(name, uid))
        at = self.clock.text()
        succeeded = {"type": "Succeeded", "status": "True", "reason": "Succeeded"}
        status: dict[str, Any] = {
            "phase": "Succeeded",
            "artifact": {"uri": artifact_uri(CLAIM, name, uid), "digest": DIGEST, "bytes": 1},
            "probe": PROBE,
            "stages": [{"name": "serve", "state": "Succeeded", "attempt": 1}],
            "conditions": [{**succeeded, "lastTransitionTime": at}],
            "finishedAt": at,
            "observedGeneration": job["metadata"]["generation"],
        }
        with self.endpoints.user():
            self.server.patch("FineTuneJob", NAMESPACE, name, {"status": status}, "status")

    def _edit_endpoint(self, spec: dict[str, Any]) -> bool:
        if self.endpoint is None:
            return False
        with self.endpoints.user():
            self.server.patch("ModelEndpoint", NAMESPACE, ENDPOINT, {"spec": spec})
        return True
