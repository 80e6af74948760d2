"""Histories of endpoints that the random ones meet rarely, and the violations that they detect."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.clock import running
from tests.sim.endpoint_actions import ENDPOINT, OTHERS
from tests.sim.invariants import Violation
from tests.sim.machine import Machine, Step
from tests.sim.port import FAULTS
from tests.unit.jobs.world import NAMESPACE

EXPORTS = Step("other_job_exports", 0, 2.0, 40.0)
YOUNGER = Step("create_other_job", 2, 2.0, 4.0)


pytestmark = pytest.mark.usefixtures("raise_violations")


def play(*steps: Step) -> Machine:
    """A history to the point at which its job has ended."""
    machine = Machine(Counter())
    with running(machine.clock):
        machine.start()
        for step in steps:
            machine.play(step)
        machine.settle()
    return machine


def latest(machine: Machine) -> str:
    assert machine.endpoint is not None
    return str(machine.endpoint["status"]["latest"]["job"]["name"])


def test_a_younger_job_takes_the_endpoint_over_and_an_older_one_does_not() -> None:
    machine = play(Step("touch", 0, 2.0, 150.0), EXPORTS)
    assert latest(machine) == "glossary", "another-1 is older, and exported later"
    machine = play(YOUNGER, Step("touch", 0, 2.0, 150.0), EXPORTS, EXPORTS)
    assert latest(machine) == OTHERS[2]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("calls", range(6))
def test_a_fault_between_the_writes_of_two_roll_outs_changes_nothing_in_the_end(
    fault: str, calls: int
) -> None:
    which = FAULTS.index(fault) + calls * len(FAULTS)  # type: ignore[arg-type]
    broken = Step("operator_fault", which, 2.0, 0.0)
    machine = play(YOUNGER, Step("touch", 0, 2.0, 150.0), EXPORTS, broken, EXPORTS)
    assert latest(machine) == OTHERS[2]


def test_the_model_of_a_deleted_job_is_kept_while_it_is_served() -> None:
    machine = play(Step("touch", 0, 2.0, 150.0), Step("delete_job", 0, 2.0, 4.0))
    assert machine.job is None
    before = [*machine.artifacts.folders]
    with running(machine.clock):
        machine.forget_jobs()
    assert [*machine.artifacts.folders] == before
    assert latest(machine) == "glossary"


def test_a_model_that_was_served_before_its_hand_over_is_followed_after_the_job_is_deleted() -> (
    None
):
    """The endpoint is pinned to it while the job is suspended."""
    machine = Machine(Counter())
    with running(machine.clock):
        machine.start()
        for step in (Step("apply_endpoint", 0, 0.0, 1.0), EXPORTS, Step("pin", 0, 0.0, 150.0)):
            machine.play(step)
        assert "EndpointPinned" in str(machine.status["conditions"])
        machine.play(Step("suspend", 0, 0.0, 5.0))
        machine.play(Step("pin", 1, 0.0, 60.0))
        machine.play(Step("time_to_live", 0, 0.0, 1.0))
        machine.play(Step("resume", 0, 0.0, 60.0))
        machine.settle()
    assert machine.job is None
    assert latest(machine) == "glossary"


def test_an_operator_that_writes_the_spec_of_an_endpoint_is_a_violation() -> None:
    machine = play()
    with pytest.raises(Violation, match="never writes the spec"):
        machine.server.patch("ModelEndpoint", NAMESPACE, ENDPOINT, {"spec": {"gpus": 2}})


def test_an_older_latest_model_is_a_violation() -> None:
    machine = play(YOUNGER, EXPORTS, EXPORTS)
    assert machine.endpoint is not None
    status = machine.endpoint["status"]
    older = machine.server.get("FineTuneJob", NAMESPACE, OTHERS[0])["metadata"]
    job = {**status["latest"]["job"], "name": older["name"], "uid": older["uid"]}
    change = {"status": {"latest": {**status["latest"], "job": job}}}
    with pytest.raises(Violation, match="never an older one"):
        machine.server.patch("ModelEndpoint", NAMESPACE, ENDPOINT, change, "status")


def test_the_removal_of_a_followed_artifact_is_a_violation() -> None:
    machine = play()
    with pytest.raises(Violation, match="not removed"):
        machine.endpoints.removes(next(iter(machine.artifacts.folders)))
