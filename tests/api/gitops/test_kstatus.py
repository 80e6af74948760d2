"""What Flux reports for every state of our objects, by its own libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.decision import Manifest

from hack.cluster.errors import ClusterError
from hack.gitops.kstatus import build_program, compute_statuses
from tests.api.client import Api
from tests.api.gitops.examples import GITOPS, JOBS, read_documents
from tests.unit.gitops import endpoint_cases, job_cases, profile_cases
from tests.unit.gitops.cases import Case
from tests.unit.jobs.world import CPU_PROFILE

CASES = [*job_cases.CASES.all, *endpoint_cases.CASES.all, *profile_cases.CASES.all]
UNSEEN = [JOBS[0], GITOPS / "models" / "endpoint.yaml"]
ENDS = {"Succeeded": "Current", "Failed": "Failed", "Suspended": "Current"}


@pytest.fixture(scope="module", autouse=True)
def _build() -> None:
    try:
        build_program()
    except ClusterError as reason:
        pytest.skip(f"no kstatus: {reason}")


def compute_example_statuses(*objects: Manifest) -> list[dict[str, str]]:
    """The statuses with the healthCheckExprs of the example for Flux."""
    expressions: list[dict[str, Any]] = yaml.safe_load(
        (GITOPS / "flux" / "models.yaml").read_text()
    )["spec"]["healthCheckExprs"]
    return compute_statuses(objects, expressions)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_status_is_that_of_the_case(case: Case) -> None:
    (found,) = compute_example_statuses(case.observe().found)
    assert found == {"kstatus": case.expected.kstatus, "flux": case.expected.flux}


def test_a_job_is_current_or_failed_at_its_end_and_otherwise_in_progress_or_stalled() -> None:
    written = [each for case in job_cases.CASES.all for each in case.observe().written]
    for job, found in zip(written, compute_example_statuses(*written), strict=True):
        status = job["status"]
        stalled = any(
            c["type"] == "Stalled" and c["status"] == "True" for c in status["conditions"]
        )
        expected = ENDS.get(status["phase"], "Failed" if stalled else "InProgress")
        if status["observedGeneration"] != job["metadata"]["generation"]:
            expected = "InProgress"
        assert found == {"kstatus": expected, "flux": expected}, status


def test_an_object_without_a_status_is_current_until_it_is_being_deleted() -> None:
    metadata = {"name": "cpu", "generation": 1}
    profile = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AcceleratorProfile",
        "metadata": metadata,
        "spec": CPU_PROFILE,
    }
    deleted = {**profile, "metadata": {**metadata, "deletionTimestamp": "2026-01-05T12:00:00Z"}}
    kinds = [found["kstatus"] for found in compute_example_statuses(profile, deleted)]
    assert kinds == ["Current", "Terminating"]


@pytest.mark.parametrize("path", UNSEEN, ids=lambda path: path.name)
def test_an_object_that_the_operator_has_not_seen_is_in_progress(
    api: Api, namespace: str, path: Path
) -> None:
    """The API server fills in observedGeneration -1, whatever the object was created with."""
    for manifest in read_documents(path):
        metadata = {**manifest["metadata"], "namespace": namespace}
        kind, name = manifest["kind"], metadata["name"]
        made = api.create({**manifest, "metadata": metadata, "status": {"message": "by me"}})
        found = api.get(kind, namespace, name)
        (listed,) = (each for each in api.list(kind) if each["metadata"]["uid"] == uid_of(made))
        for each in (made, found, listed):
            assert each["status"] == {"observedGeneration": -1}
        assert compute_example_statuses(found) == [{"kstatus": "InProgress", "flux": "InProgress"}]


def uid_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["uid"])
