"""The cases reach every phase and every value of every condition, and keep kstatus's rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from finetune_api.jobstatus import Phase
from finetune_api.modelendpoint import EndpointPhase, RevisionState
from finetune_operator.decision import Manifest
from finetune_operator.jobs.reporting import STAGE_CONDITIONS

from tests.unit.gitops import endpoint_cases, job_cases, profile_cases
from tests.unit.gitops.cases import Case

JOBS, ENDPOINTS = job_cases.CASES.all, endpoint_cases.CASES.all
PROFILES = profile_cases.CASES.all
UNKNOWN = {("Succeeded", "Unknown")}
JOB_CONDITIONS = ("Succeeded", "Reconciling", "Stalled", "Suspended", *STAGE_CONDITIONS.values())
ENDPOINT_CONDITIONS = ("Ready", "Reconciling", "Stalled")
PROFILE_CONDITIONS = ("Ready", "Stalled")


def get_conditions(found: Manifest) -> dict[str, Any]:
    return {each["type"]: each for each in (found.get("status") or {}).get("conditions", [])}


def list_last_statuses(cases: list[Case]) -> Iterator[dict[str, Any]]:
    """The statuses at the end of the cases, of those in which the operator has written one."""
    for case in cases:
        status = case.observe().found.get("status", {})
        if "conditions" in status:
            yield status


def list_condition_values(cases: list[Case]) -> set[tuple[str, str]]:
    return {
        (each["type"], each["status"])
        for s in list_last_statuses(cases)
        for each in s["conditions"]
    }


def test_a_case_ends_in_every_phase_of_a_job() -> None:
    assert {status["phase"] for status in list_last_statuses(JOBS)} == {*get_args(Phase)}


def test_a_case_ends_in_every_phase_and_revision_state_of_an_endpoint() -> None:
    assert {status["phase"] for status in list_last_statuses(ENDPOINTS)} == {
        *get_args(EndpointPhase)
    }
    states = {
        each["state"] for status in list_last_statuses(ENDPOINTS) for each in status["revisions"]
    }
    assert states == {*get_args(RevisionState)}


def test_the_cases_have_every_value_of_every_condition() -> None:
    both = {(kind, value) for kind in JOB_CONDITIONS for value in ("True", "False")}
    assert list_condition_values(JOBS) == both | UNKNOWN
    both = {(kind, value) for kind in ENDPOINT_CONDITIONS for value in ("True", "False")}
    assert list_condition_values(ENDPOINTS) == both
    both = {(kind, value) for kind in PROFILE_CONDITIONS for value in ("True", "False")}
    assert list_condition_values(PROFILES) == both


@pytest.mark.parametrize("case", [*JOBS, *ENDPOINTS], ids=lambda case: case.name)
def test_no_status_is_stalled_and_reconciling_at_once(case: Case) -> None:
    for found in case.observe().written:
        now = get_conditions(found)
        assert {now["Stalled"]["status"], now["Reconciling"]["status"]} != {"True"}
        assert {each["observedGeneration"] for each in now.values()} == {
            found["status"]["observedGeneration"]
        }


@pytest.mark.parametrize("case", JOBS, ids=lambda case: case.name)
def test_the_end_of_a_job_is_in_its_conditions(case: Case) -> None:
    """Current for kstatus if it succeeded, Failed if it failed, InProgress while it runs."""
    for found in case.observe().written:
        now, phase = get_conditions(found), found["status"]["phase"]
        overall = tuple(now[kind]["status"] for kind in ("Succeeded", "Stalled", "Reconciling"))
        if phase in ("Succeeded", "Failed", "Suspended"):
            assert (
                overall
                == {
                    "Succeeded": ("True", "False", "False"),
                    "Failed": ("False", "True", "False"),
                    "Suspended": ("Unknown", "False", "False"),
                }[phase]
            )
        else:
            assert overall in [("Unknown", "True", "False"), ("Unknown", "False", "True")]
