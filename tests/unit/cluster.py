"""A cluster for unit tests: the simulation's API server, read without delay, and a clock to turn.

The simulation's API server is held against kube-apiserver (tests/api/test_conformance.py), so the
unit tests of plans stand on the same semantics as everything else. It is also the plans' `View`: a
cache that is always up to date. Nothing happens by itself; what controllers and kubelets do, a test
does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from finetune_operator.decision import HttpResponse, Manifest
from finetune_operator.engine.diff import merge_patch

from tests.sim.clock import START as EPOCH
from tests.sim.clock import Clock
from tests.sim.server import ApiServer


class Cluster:
    """Objects of one namespace (and cluster-scoped ones), the time, and the responses of pods."""

    def __init__(self, start: datetime, namespace: str) -> None:
        self.namespace = namespace
        self.responses: dict[str, HttpResponse] = {}
        self.served: frozenset[tuple[str, str]] = frozenset()
        self._clock = Clock()
        self.server = ApiServer(self._clock)
        self.now = start

    # The time

    @property
    def now(self) -> datetime:
        return self._clock.moment()

    @now.setter
    def now(self, moment: datetime) -> None:
        self._clock.now = (moment - EPOCH).total_seconds()

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self._clock.now += seconds

    def time(self, later: float = 0.0) -> str:
        """RFC 3339 in whole seconds, `later` seconds from now."""
        return self._clock.text(later)

    # The View of a plan

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return self.server.find(kind, namespace, name)

    def list(self, kind: str, namespace: str | None = None) -> Sequence[Manifest]:
        return self.server.list(kind, namespace or "")

    def list_by_label(
        self, kind: str, namespace: str, label: str, value: str
    ) -> Sequence[Manifest]:
        found = self.list(kind, namespace)
        return [each for each in found if each["metadata"].get("labels", {}).get(label) == value]

    def http_response(self, request_id: str) -> HttpResponse | None:
        return self.responses.get(request_id)

    def serves(self, group: str, kind: str) -> bool:
        return (group, kind) in self.served

    # What a test reads and does

    def need(self, kind: str, name: str) -> Manifest:
        """An object of the namespace, or a cluster-scoped one; it must exist."""
        found = self.find(kind, name)
        assert found is not None, f"no {kind} {name}"
        return found

    def find(self, kind: str, name: str) -> Manifest | None:
        """An object of the namespace, or a cluster-scoped one."""
        return self.server.find(kind, self.namespace, name) or self.server.find(kind, "", name)

    def current(self, manifest: Manifest) -> Manifest:
        """An object as the API server has it now."""
        return self.need(manifest["kind"], manifest["metadata"]["name"])

    def names(self, kind: str) -> Sequence[str]:
        return [found["metadata"]["name"] for found in self.list(kind, self.namespace)]

    def load(self, manifest: Manifest) -> Manifest:
        """Store an object as it is, with its uid and its status, as a restore of etcd would."""
        stored = copy.deepcopy(manifest)
        stored["metadata"].setdefault("uid", f"loaded-{self.server.version}")
        return self.server.restore(stored)

    def patch(self, manifest: Manifest, patch: Mapping[str, Any]) -> Manifest:
        """Merge-patch anything but the status; None removes a field."""
        meta = manifest["metadata"]
        return self.server.patch(
            manifest["kind"], meta.get("namespace", ""), meta["name"], copy.deepcopy(dict(patch))
        )

    def replace_fields(self, manifest: Manifest, fields: Mapping[str, Any]) -> Manifest:
        """Replace top-level fields of the spec as a whole; None removes a field."""
        spec = self.current(manifest)["spec"]
        desired = {key: value for key, value in {**spec, **fields}.items() if value is not None}
        return self.patch(manifest, {"spec": merge_patch(spec, desired)})

    def set_status(self, manifest: Manifest, **fields: Any) -> Manifest:
        """Change fields of the status."""
        meta = manifest["metadata"]
        space, name = meta.get("namespace", ""), meta["name"]
        status = {"status": copy.deepcopy(fields)}
        return self.server.patch(manifest["kind"], space, name, status, "status")

    def replace_status(self, manifest: Manifest, status: Mapping[str, Any]) -> Manifest:
        """Write another status, or the same again."""
        return self.set_status(
            manifest, **merge_patch(self.current(manifest).get("status") or {}, status)
        )

    def mark_terminating(self, manifest: Manifest) -> Manifest:
        """Give an object a deletionTimestamp, as if finalizers kept it."""
        meta = {**self.current(manifest)["metadata"], "deletionTimestamp": self.time()}
        return self.load({**self.current(manifest), "metadata": meta})

    def write_status(self, planned_from: Manifest, status: Mapping[str, Any]) -> Manifest:
        """Write a plan's status as the engine does, fenced by the planned resourceVersion."""
        meta = planned_from["metadata"]
        patch = merge_patch(planned_from.get("status") or {}, status)
        fence = {"resourceVersion": meta["resourceVersion"]}
        return self.server.patch(
            planned_from["kind"],
            meta.get("namespace", ""),
            meta["name"],
            {"metadata": fence, "status": patch},
            "status",
        )

    def remove(self, kind: str, name: str) -> Manifest:
        """Delete an object without grace; returns what it was."""
        found = self.need(kind, name)
        self.server.delete(kind, found["metadata"].get("namespace", ""), name, grace=0)
        return found

    def snapshot(self) -> object:
        """A deep copy of all objects, to see that a plan leaves them alone."""
        return copy.deepcopy(self.server.all_objects())


def owner_of(manifest: Manifest) -> str:
    """Name of the object's first owner; empty without one."""
    owners = manifest["metadata"].get("ownerReferences") or [{}]
    return str(owners[0].get("name", ""))
