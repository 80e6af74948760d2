"""The requests to the API server that the plans' decisions and the engine make.

Worlds of the unit tests play every state of a job and of an endpoint; what each decision makes the
engine send is recorded. A new controller or a new kind of write needs a play here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any
from unittest import mock

from finetune_operator.decision import Decision, EventQuery, Manifest, Settings, View
from finetune_operator.engine.kinds import EVENT, LEASE, WATCHED, resource
from finetune_operator.engine.kube_client import AlreadyExists
from finetune_operator.names import JANITOR
from finetune_operator.workspaces.plan import PERIOD

from tests.unit.acceleratorprofiles import world as profiles
from tests.unit.endpoints import world as endpoints
from tests.unit.endpoints.world import artifact
from tests.unit.gitops import endpoint_cases, job_cases
from tests.unit.jobs import world as jobs
from tests.unit.workspaces import world as workspaces

FIXED_NAMES = (JANITOR,)


@dataclass(frozen=True)
class Request:
    """What RBAC decides about; an empty name stands for requests without one."""

    verb: str
    group: str
    resource: str
    name: str = ""


def find_requests(watches_all_namespaces: bool) -> set[Request]:
    """Every request that the operator makes, with the names of objects that have a fixed one."""
    return set(_of_engine()) | _of_plans() | _of_profiles(watches_all_namespaces)


def _request(verb: str, kind: str, subresource: str = "", name: str = "") -> Request:
    found = resource(kind)
    plural = f"{found.plural}/{subresource}" if subresource else found.plural
    return Request(verb, found.group, plural, name)


def _of_engine() -> Iterator[Request]:
    """Watches, leader election, events."""
    for each in (*WATCHED, LEASE):
        yield _request("list", each.kind)
        yield _request("watch", each.kind)
    for verb in ("get", "create", "update"):
        yield _request(verb, LEASE.kind)
    for verb in ("create", "patch"):
        yield _request(verb, EVENT.kind)


@cache
def _of_plans() -> set[Request]:
    with _recording() as requests:
        for case in (*job_cases.CASES.all, *endpoint_cases.CASES.all):
            case.observe()
        _play_ends_of_jobs()
        _play_kserve()
        _play_workspace()
    return requests


def _of_profiles(watches_all_namespaces: bool) -> set[Request]:
    world = profiles.Pools()
    world.settings = replace(world.settings, watches_all_namespaces=watches_all_namespaces)
    with _recording() as requests:
        world.observe_profile()
    return requests


def _play_ends_of_jobs() -> None:
    """One is served by an endpoint that a user created; the other is deleted after a while."""
    served = jobs.World()
    served.load(endpoints.endpoint())
    kept_for_a_minute = jobs.World(jobs.job_manifest(serve=None, ttlSecondsAfterFinished=60))
    for world in (served, kept_for_a_minute):
        for stage in ("prepare", "train", "evaluate", "export"):
            world.run_stage(stage)
    kept_for_a_minute.tick(61)
    kept_for_a_minute.reconcile()


class _KServeWorld(endpoints.World):
    """The engine takes a child that exists already and is the same for its own."""

    def _write(self, action: Any) -> None:
        with suppress(AlreadyExists):
            super()._write(action)


def _play_kserve() -> None:
    """Revisions replace each other, with another size and with another image."""
    world = _KServeWorld(kserve=True)
    world.settle()
    world.edit(replicas=2)
    world.settle()
    world.settings = replace(world.settings, serving_image="vllm:v2")
    world.edit(artifact=artifact("b"))
    for _ in range(3):
        world.settle()
        world.tick(3600)


def _play_workspace() -> None:
    """The first janitor of a workspace, and what is kept after it."""
    world = workspaces.fresh()
    for _ in range(3):
        workspaces.reconcile(world)
        world.tick(PERIOD.total_seconds())


@contextmanager
def _recording() -> Iterator[set[Request]]:
    """The requests of every decision that is made in the body."""
    requests: set[Request] = set()

    def record(plan: Callable[..., Decision]) -> Any:
        def planned(of: Any, view: View, settings: Settings, now: datetime) -> Decision:
            decision = plan(of, view, settings, now)
            requests.update(_of_decision(of, view, decision))
            return decision

        return planned

    with ExitStack() as patches:
        for module, name in (
            (jobs, "reconcile_job"),
            (profiles, "reconcile_profile"),
            (endpoints, "reconcile_endpoint"),
            (workspaces, "reconcile_workspace"),
        ):
            patches.enter_context(mock.patch.object(module, name, record(getattr(module, name))))
        yield requests


def _of_decision(of: Any, view: View, decision: Decision) -> Iterator[Request]:
    if decision.status is not None:
        yield _request("patch", of["kind"], "status")
    for manifest in decision.create:
        yield _request("create", manifest["kind"])
        yield _request("get", manifest["kind"])  # where it exists already
        yield from _of_owners(manifest)
    for manifest in decision.apply:
        kind, metadata = manifest["kind"], manifest["metadata"]
        fixed = metadata["name"] if metadata["name"] in FIXED_NAMES else ""
        yield _request("patch", kind, name=fixed)
        if view.get(kind, metadata.get("namespace", ""), metadata["name"]) is None:
            yield _request("create", kind)
        yield from _of_owners(manifest)
    for ref in decision.delete:
        yield _request("delete", ref.kind)
    if any(isinstance(each, EventQuery) for each in decision.requests):
        yield _request("list", EVENT.kind)


def _of_owners(manifest: Manifest) -> Iterator[Request]:
    """An admission plugin asks for this before a child may hold up the deletion of its owner."""
    for owner in manifest["metadata"].get("ownerReferences", ()):
        if owner.get("blockOwnerDeletion"):
            yield _request("update", owner["kind"], "finalizers")
