"""Reading times, conditions and references of raw objects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from finetune_operator.decision import Manifest, ObjectRef
from finetune_operator.manifest import (
    find_condition,
    finished_condition,
    format_time,
    is_finished,
    is_terminal,
    object_ref,
    parse_time,
    read_reason,
)

NOON = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)


def with_conditions(**statuses: str | None) -> Manifest:
    """An object with a condition of each type."""
    conditions: list[dict[str, Any]] = [
        {"type": kind, **({} if status is None else {"status": status})}
        for kind, status in statuses.items()
    ]
    return {"status": {"conditions": conditions}}


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-05T12:00:00Z", NOON),
        ("2026-01-05T12:00:00.250000Z", NOON + timedelta(milliseconds=250)),
        ("2026-01-05T14:00:00+02:00", NOON),
        ("2026-01-05T12:00:00", None),
        ("2026-01-05", None),
        ("yesterday", None),
        ("", None),
        (None, None),
        (1767614400, None),
    ],
)
def test_a_time_is_read_if_it_has_a_zone(text: object, at: datetime | None) -> None:
    assert parse_time(text) == at


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (NOON, "2026-01-05T12:00:00Z"),
        (NOON + timedelta(milliseconds=999), "2026-01-05T12:00:00Z"),
    ],
    ids=["whole seconds", "the fraction is dropped"],
)
def test_a_time_is_written_in_whole_seconds(at: datetime, text: str) -> None:
    assert format_time(at) == text


@pytest.mark.parametrize(
    "manifest",
    [{}, {"status": None}, {"status": {}}, {"status": {"conditions": None}}, with_conditions(B="")],
    ids=["no status", "null", "empty", "no conditions", "another type"],
)
def test_a_missing_condition_is_empty(manifest: Manifest) -> None:
    assert find_condition(manifest, "A") == {}


def test_a_condition_is_found_by_its_type() -> None:
    found = find_condition(with_conditions(A="True", B="False"), "B")
    assert found == {"type": "B", "status": "False"}


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({}, False),
        (with_conditions(Stalled="True"), False),
        (with_conditions(Succeeded="Unknown"), False),
        (with_conditions(Succeeded=None), False),
        (with_conditions(Succeeded="True"), True),
        (with_conditions(Succeeded="False"), True),
        (with_conditions(Succeeded="Paused"), True),
    ],
    ids=["new", "no Succeeded", "Unknown", "no status", "True", "False", "of a later version"],
)
def test_a_finetunejob_is_terminal_unless_succeeded_is_unknown(
    job: Manifest, expected: bool
) -> None:
    assert is_terminal(job) is expected


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        ({}, None),
        (with_conditions(Suspended="True"), None),
        (with_conditions(Complete="False", Failed="False"), None),
        (with_conditions(SuccessCriteriaMet="True", Complete="True"), "Complete"),
        (with_conditions(FailureTarget="True", Failed="True"), "Failed"),
    ],
    ids=["new", "suspended", "neither", "complete", "failed"],
)
def test_a_batch_job_is_finished_by_complete_or_failed(job: Manifest, kind: str | None) -> None:
    found = finished_condition(job)
    assert (found["type"] if found else None) == kind
    assert is_finished(job) is (kind is not None)


def test_a_reference_names_this_very_object() -> None:
    metadata = {"namespace": "team-a", "name": "x", "uid": "u1"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}
    assert object_ref(job) == ObjectRef("Job", "team-a", "x", "u1")


@pytest.mark.parametrize("written", ["Evicted\n", "two words", "", "9th", "x" * 129, None, 7])
def test_a_reason_that_no_condition_could_hold_is_replaced(written: object) -> None:
    assert read_reason(written, "Disrupted") == "Disrupted"
    assert read_reason("Evicted", "Disrupted") == "Evicted"
