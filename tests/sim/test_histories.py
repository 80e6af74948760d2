"""The simulation itself: it is repeatable, and it detects violations."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.clock import running
from tests.sim.history import decode, encode, play
from tests.sim.invariants import Violation
from tests.sim.machine import Machine, Step

TROUBLE = [
    Step("evict", 1, 2.0, 12.0),
    Step("cut_node", 0, 2.0, 40.0),
    Step("two_leaders", 0, 15.0, 4.0),
    Step("operator_fault", 1, 2.0, 7.0),
    Step("node_returns", 0, 2.0, 4.0),
]


pytestmark = pytest.mark.usefixtures("raise_violations")


def test_a_history_can_be_encoded_and_decoded() -> None:
    assert decode(encode(TROUBLE)) == TROUBLE


def test_a_history_is_repeatable() -> None:
    first, second = Counter[str](), Counter[str]()
    play(TROUBLE, first)
    play(TROUBLE, second)
    assert first == second
    assert first["train tried again"] >= 1


@pytest.mark.parametrize("seconds", [14.0, 17.0, 21.0, 26.0])
def test_a_suspended_job_reports_its_last_checkpoint(seconds: float) -> None:
    """Pods of a deleted Job are gone a moment after they ended."""
    machine = Machine(Counter())
    with running(machine.clock):
        machine.start()
        machine.wait(seconds)
        assert machine.status["phase"] == "Training"
        machine.play(Step("suspend", 0, 0.0, 30.0))
        assert machine.status["phase"] == "Suspended"
        workspace = machine.trainer.workspace(machine.job["metadata"]["uid"])
        assert machine.status["checkpoint"]["step"] == workspace.newest_step(2)


def test_a_partitioned_gang_publishes_nothing_alongside_its_successor() -> None:
    met = Counter[str]()
    machine = Machine(met)
    with running(machine.clock):
        machine.start()
        machine.wait(14.0)
        assert machine.status["phase"] == "Training"
        machine.play(Step("cut_gang", 0, 0.0, 40.0))
        machine.settle()
    assert met["zombie trained alongside its successor"] == 1
    assert met["zombie was fenced"] == 1
    assert machine.status["phase"] == "Succeeded"
    assert machine.status["restarts"] == 0


def test_counting_an_eviction_as_a_crash_is_a_violation() -> None:
    machine = Machine(Counter())
    job = machine.job
    assert job is not None
    with pytest.raises(Violation, match="free"):
        machine.server.patch(
            "FineTuneJob",
            job["metadata"]["namespace"],
            job["metadata"]["name"],
            {"status": {"phase": "Queued", "restarts": 1}},
            "status",
        )
