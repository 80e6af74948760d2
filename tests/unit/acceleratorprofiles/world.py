"""One job with its profile, and what the operator writes into the status of the profile."""

from __future__ import annotations

from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileStatus
from finetune_operator.acceleratorprofiles.plan import reconcile_profile

from tests.unit.jobs.world import CPU_PROFILE, NAMESPACE, World


class Pools(World):
    """The world of a job on the profile `cpu`, with further profiles and endpoints."""

    def add_profile(self, name: str, spec: dict[str, Any]) -> None:
        meta = {"name": name, "uid": f"profile-{name}", "generation": 1}
        self.load({"kind": "AcceleratorProfile", "metadata": meta, "spec": spec})

    def add_pool(self, name: str, **spec: Any) -> None:
        """A CPU pool with further fields in its spec."""
        self.add_profile(name, CPU_PROFILE | spec)

    def add_endpoint(self, name: str, profile: str | None = None) -> None:
        meta = {"name": name, "namespace": NAMESPACE, "uid": f"endpoint-{name}"}
        spec = {"profile": profile} if profile else {}
        self.load({"kind": "ModelEndpoint", "metadata": meta, "spec": spec})

    def observe_profile(self, name: str = "cpu") -> dict[str, Any]:
        """The status of a profile after one decision that is carried out."""
        profile = self.need("AcceleratorProfile", name)
        decision = reconcile_profile(profile, self, self.settings, self.now)
        if decision.status is not None:
            AcceleratorProfileStatus.model_validate(decision.status)  # as the CRD does
            self.write_status(profile, decision.status)
        return dict(self.need("AcceleratorProfile", name).get("status") or {})


def get_condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(each for each in status["conditions"] if each["type"] == kind)
