"""The `kubectl wait` commands of docs/gitops.md and docs/concepts.md end when they should."""

from __future__ import annotations

from typing import Any

import pytest

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.client import Api, Manifest
from tests.unit.gitops import endpoint_cases, job_cases

CASES = {case.name: case for case in [*job_cases.CASES.all, *endpoint_cases.CASES.all]}
SETTLED = "--for=condition=Reconciling=False"
READY = "--for=condition=Ready"
ENDED = "--for=jsonpath={.status.finishedAt}"


def store_case(api: Api, namespace: str, name: str) -> Manifest:
    """Create the object of a case on the API server, with the status of the case."""
    found = CASES[name].observe().found
    metadata = {"name": "glossary", "namespace": namespace}
    made = api.create({**found, "metadata": metadata, "status": None}, namespace)
    status: dict[str, Any] = {**found["status"], "observedGeneration": 1}
    status["conditions"] = [{**each, "observedGeneration": 1} for each in status["conditions"]]
    return api.patch(made["kind"], namespace, "glossary", {"status": status}, "status")


def has_wait_ended(plane: ControlPlane, found: Manifest, condition: str) -> bool:
    """Whether `kubectl wait` ends before its timeout."""
    what = f"{found['kind'].lower()}/glossary"
    place = ["-n", found["metadata"]["namespace"]]
    try:
        plane.kubectl("wait", *place, what, condition, "--timeout=1s")
    except ClusterError as error:
        if "timed out waiting" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("case", "ready", "settled"),
    [
        ("starts_its_first_revision", False, False),
        ("is_ready", True, True),
        ("starts_a_second_revision", True, False),
        ("serves_its_old_revision_as_the_new_one_answers_wrongly", True, True),
    ],
)
def test_an_endpoint_is_waited_for_until_its_roll_out_has_ended(
    control_plane: ControlPlane, api: Api, namespace: str, case: str, ready: bool, settled: bool
) -> None:
    found = store_case(api, namespace, case)
    assert has_wait_ended(control_plane, found, READY) is ready
    assert has_wait_ended(control_plane, found, SETTLED) is settled


def test_a_status_of_an_older_spec_ends_no_wait(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    found = store_case(api, namespace, "is_ready")
    api.patch("ModelEndpoint", namespace, "glossary", {"spec": {"replicas": 2}})
    assert not has_wait_ended(control_plane, found, SETTLED)


@pytest.mark.parametrize(
    ("case", "ended"),
    [("is_training", False), ("has_succeeded", True), ("has_failed_in_prepare", True)],
)
def test_a_job_is_waited_for_until_its_end(
    control_plane: ControlPlane, api: Api, namespace: str, case: str, ended: bool
) -> None:
    assert has_wait_ended(control_plane, store_case(api, namespace, case), ENDED) is ended
