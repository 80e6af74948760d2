"""The figures of the chaos table, from histories that are written down here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.chaos.watching import (
    Sighting,
    Step,
    detected,
    losses,
    lost_steps,
    resumed,
    steps_of,
)


def steps(attempt: int, numbers: range, start: float, loss: float = 1.0) -> list[Step]:
    """A step a second."""
    return [Step(attempt, n, loss / n, start + index) for index, n in enumerate(numbers)]


def test_steps_done_again_are_lost() -> None:
    done = [*steps(1, range(1, 14), 100), *steps(2, range(11, 21), 150)]
    assert lost_steps(done, {1: 99.0, 2: 149.0}) == 3
    assert lost_steps(done[:10] + done[13:], {1: 99.0, 2: 149.0}) == 0


def test_an_attempt_that_did_no_step_loses_none() -> None:
    done = [*steps(1, range(1, 14), 100), *steps(3, range(11, 21), 150)]
    assert lost_steps(done, {1: 99.0, 2: 120.0, 3: 149.0}) == 3


def test_what_a_fenced_attempt_does_after_the_next_one_took_over_is_not_lost() -> None:
    done = [*steps(1, range(1, 41), 100), *steps(2, range(11, 21), 115)]
    assert lost_steps(done, {1: 99.0, 2: 111.5}) == 2


def test_the_later_attempt_decides_on_a_loss() -> None:
    done = [*steps(1, range(1, 4), 100), *steps(2, range(3, 5), 150, loss=2.0)]
    assert losses(done) == {1: 1.0, 2: 0.5, 3: 2 / 3, 4: 0.5}


def test_a_job_resumes_with_the_first_step_of_a_new_attempt() -> None:
    done = [*steps(1, range(1, 14), 100), *steps(2, range(11, 21), 150)]
    assert resumed(done, 110.5) == 39.5
    assert resumed(done[:13], 110.5) is None


def test_a_status_tells_of_a_fault_when_it_says_something_else() -> None:
    def seen(at: float, phase: str, **more: Any) -> Sighting:
        return Sighting(at, str(at), {"phase": phase, **more})

    quiet = [seen(1, "Training"), seen(2, "Training", progress={"step": 3})]
    assert detected([*quiet, seen(4, "Training", progress={"step": 5})], 3.0) is None
    failure = {"attempt": 1, "reason": "RankFailed"}
    assert detected([*quiet, seen(5, "Training", failure=failure)], 3.0) == 2.0
    assert detected([*quiet, seen(6, "Queued")], 3.0) == 3.0


def test_half_a_line_of_a_killed_rank_is_no_step(tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.mkdir()
    whole = json.dumps({"step": 1, "loss": 2.5, "time": 10.0}) + "\n"
    (report / "train-1.jsonl").write_text(whole + '{"step": 2, "lo')
    assert steps_of(tmp_path) == [Step(1, 1, 2.5, 10.0)]
