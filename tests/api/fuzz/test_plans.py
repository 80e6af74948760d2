"""The operator plans every stored spec: to an end, to valid children, or to a reason.

The job walks through its stages in the in-memory world of the unit tests, with any facts about
model and data that their schemas admit; children and status go to the API server as a dry run.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import pytest
from finetune_api.facts import DataFacts, ModelFacts, WorkspaceFacts
from finetune_api.schema import structural_schema
from finetune_operator.decision import Manifest, ObjectRef
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.api.client import Api, ApiError, object_path
from tests.api.fuzz.runs import PLANS, fuzzed, manifest, print_summary
from tests.api.fuzz.specs import nearly_valid, valid
from tests.api.fuzz.test_verdicts import verdict
from tests.api.strategies import SAFE_INTEGER, of
from tests.unit.endpoints import world as endpoints
from tests.unit.jobs.world import CPU_PROFILE, DATA, MODEL, World, job_manifest

STAGES = ("prepare", "train", "evaluate", "export")
SMALL_GANG = 4
"""Larger gangs are only launched, because all their pods behave the same."""
REMEDY = re.compile(
    r"\b(goes on when|continues when|when it is|mark one|name one|leave the mark|create|use|set|"
    r"lower|raise|delete|rename|waiting for|waits|kubectl|train longer|choose|give|ask|free|make|"
    r"change)\b"
)


def facts(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Everything that the schema of a stage's result admits."""
    out: st.SearchStrategy[dict[str, Any]] = of(structural_schema(model, spec=False))
    return out


MODELS = st.one_of(st.just(MODEL), facts(ModelFacts))
DATASETS = st.one_of(st.just(DATA), facts(DataFacts))
# Most free bytes that are drawn are too few, so that no job would train.
ROOMY = {"freeBytes": SAFE_INTEGER, "writeBytesPerSecond": 1e9}
WORKSPACES = st.one_of(st.just(ROOMY), facts(WorkspaceFacts))


class Watched(World):
    """A world that records every child that the operator creates."""

    def __init__(self, job: Manifest) -> None:
        super().__init__(job)
        self.wanted: list[Manifest] = []

    def create(self, manifest: Manifest) -> None:
        super().create(manifest)
        self.wanted.append(copy.deepcopy(manifest))

    def delete(self, ref: ObjectRef) -> None:
        """Keep a job whose time to live is over, so that the test can check its end."""
        if ref.kind == "FineTuneJob":
            assert self.status["phase"] in ("Succeeded", "Failed"), self.status
            return
        super().delete(ref)

    def rest(self) -> None:
        """Plan until nothing changes: the job has ended, is suspended, continues, or reports why
        it does not."""
        self.settle()
        status = self.status
        if status["phase"] == "Succeeded":
            return
        if status["phase"] == "Suspended":
            assert "suspend" in status["message"], status
            return
        if status["phase"] == "Failed":
            failure = status["failure"]
            assert re.fullmatch(r"[A-Z][A-Za-z]+", failure["reason"]), failure
            assert failure["message"], failure
            assert failure.get("remedy"), f"a failure without a remedy: {failure}"
            return
        assert self.decision.requeue_after is not None, "the job would never be reconciled again"
        stalled = self.condition("Stalled")
        if stalled["status"] == "True":
            assert re.fullmatch(r"[A-Z][A-Za-z]+", stalled["reason"]), stalled
            assert REMEDY.search(stalled["message"]), stalled
        else:
            under_way = [*self.names("Job"), *self.names("ModelEndpoint")]
            assert under_way, f"stuck without a reason: {status}"


@pytest.fixture
def carrier(api: Api, namespace: str) -> str:
    """A job that takes the dry-run writes of statuses."""
    api.create(manifest("FineTuneJob", job_manifest()["spec"], namespace, "carrier"))
    return namespace


def takes(api: Api, child: Manifest, namespace: str) -> None:
    """Assert that the API server would create this child."""
    body = copy.deepcopy(child)
    body["metadata"]["namespace"] = namespace
    path = object_path(body["kind"], namespace)
    try:
        api.request("POST", path, body, dryRun="All", fieldValidation="Strict")
    except ApiError as refusal:
        raise AssertionError(f"{body['kind']} {body['metadata']['name']}: {refusal}") from None


def takes_status(api: Api, kind: str, status: dict[str, Any], namespace: str) -> None:
    """Assert that the API server would store this status."""
    path = object_path(kind, namespace, "carrier", "status")
    content = "application/merge-patch+json"
    body = {"status": status}
    api.request("PATCH", path, body, content, dryRun="All", fieldValidation="Strict")


def walk(api: Api, world: Watched, namespace: str, results: dict[str, dict[str, Any]]) -> None:
    """Run a job as far as it gets; the API server must accept every child and every status."""
    for stage in STAGES:
        world.rest()
        takes_status(api, "FineTuneJob", world.status, namespace)
        name = f"glossary-{stage}-1"
        if name not in world.names("Job"):
            break
        if world.need("Job", name)["spec"]["completions"] > SMALL_GANG:
            break
        world.add_pods(name)
        world.rest()
        world.tick(20)
        world.succeed(stage, **results.get(stage, {}))
    world.rest()
    takes_status(api, "FineTuneJob", world.status, namespace)
    assert world.wanted or not world.names("Job"), "the world records no children"
    for child in world.wanted:
        takes(api, child, namespace)


@pytest.mark.parametrize("careless", [False, True])
def test_an_admitted_job_continues_or_reports_why_not(
    api: Api, carrier: str, careless: bool
) -> None:
    job = nearly_valid("FineTuneJob") if careless else valid("FineTuneJob")
    pool = nearly_valid("AcceleratorProfile") if careless else valid("AcceleratorProfile")
    seen: Counter[str] = Counter()

    @fuzzed(PLANS)
    @given(job, pool, MODELS, DATASETS, WORKSPACES, st.booleans())
    def continues(
        spec: Any, profile: Any, model: Any, data: Any, workspace: Any, claims: bool
    ) -> None:
        stored = verdict(api, "FineTuneJob", carrier, spec)
        assume(not isinstance(stored, ApiError))
        assert isinstance(stored, dict)
        pool = verdict(api, "AcceleratorProfile", "", profile)
        pool = CPU_PROFILE if isinstance(pool, ApiError) else pool
        made = job_manifest()
        made["spec"] = stored
        world = Watched(made)
        world.add_profile(stored["compute"].get("profile", "drawn"), {**pool, "default": True})
        if claims:
            for uri in re.findall(r"pvc://([^/'\"]+)/", str(stored)):
                world.add_claim(uri)
        facts = {"model": model, "data": data, "reward": model, "workspace": workspace}
        walk(api, world, carrier, {"prepare": facts})
        end = (world.status.get("failure") or {}).get("reason") or world.status["phase"]
        seen[end] += 1

    try:
        continues()
    finally:
        print_summary("planned jobs", seen)
    assert seen.total() >= PLANS // 2
    assert seen["Succeeded"] >= PLANS // 20, "hardly any job succeeded"


def test_an_admitted_endpoint_is_served_or_reports_why_not(api: Api, namespace: str) -> None:
    seen: Counter[str] = Counter()
    spec = valid("ModelEndpoint")
    api.create(manifest("ModelEndpoint", endpoints.endpoint()["spec"], namespace, "carrier"))

    @fuzzed(PLANS)
    @given(st.one_of(spec, nearly_valid("ModelEndpoint")), valid("AcceleratorProfile"))
    def served(spec: Any, profile: Any) -> None:
        stored = verdict(api, "ModelEndpoint", namespace, spec)
        pool = verdict(api, "AcceleratorProfile", "", profile)
        assume(isinstance(stored, dict) and isinstance(pool, dict))
        assert isinstance(stored, dict)
        assert isinstance(pool, dict)
        wanted = endpoints.endpoint()
        wanted["spec"] = stored
        world = endpoints.World(wanted)
        drawn = endpoints.profile(stored.get("profile") or "cpu")
        world.load({**drawn, "spec": {**pool, "default": True}})
        world.settle()
        status = world.status
        takes_status(api, "ModelEndpoint", status, namespace)
        seen[status["phase"]] += 1
        for kind in ("Deployment", "Service"):
            for child in world.list(kind, endpoints.NAMESPACE):
                fresh = copy.deepcopy(child)
                for given_by_server in (
                    "uid",
                    "resourceVersion",
                    "creationTimestamp",
                    "generation",
                ):
                    fresh["metadata"].pop(given_by_server, None)
                takes(api, fresh, namespace)
        assert world.names("Deployment") or status["message"], "stuck without a reason"

    try:
        served()
    finally:
        print_summary("planned endpoints", seen)
    assert seen.total() >= PLANS // 2
