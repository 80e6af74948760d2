"""The simulation's own promises: it can be played again, and it sees what is broken."""

from __future__ import annotations

from collections import Counter

import pytest

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


def test_a_history_can_be_written_down_and_read_again() -> None:
    assert decode(encode(TROUBLE)) == TROUBLE


def test_the_same_history_happens_in_the_same_way() -> None:
    first, second = Counter[str](), Counter[str]()
    play(TROUBLE, first)
    play(TROUBLE, second)
    assert first == second
    assert first["train tried again"] >= 1


def test_an_engine_that_counts_an_eviction_as_a_crash_is_found_out() -> None:
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
