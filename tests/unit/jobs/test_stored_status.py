"""A status that this version cannot read whole: another version wrote it, or it was removed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from finetune_operator.decision import HttpResponse

from tests.unit.jobs.test_progress import REPORTED
from tests.unit.jobs.world import NAMESPACE, World

Status = dict[str, Any]


def drop_time(status: Status) -> None:
    del status["conditions"][0]["lastTransitionTime"]


def remove(status: Status) -> None:
    status.clear()
    status["observedGeneration"] = -1


UNREADABLE: dict[str, Callable[[Status], None]] = {
    "a condition without a time": drop_time,
    "a condition without a reason": lambda s: s["conditions"][0].update(reason=""),
    "a number that is a text": lambda s: s["progress"].update(etaSeconds="3m20s"),
    "a number with a fraction": lambda s: s["progress"].update(step=12.5),
    "a phase of another version": lambda s: s.update(phase="Paused"),
    "a state of another version": lambda s: s["stages"][1].update(state="Paused"),
    "a plan that cannot be read": lambda s: s["plan"].update(nodes="two"),
    "nothing but the default": remove,
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_training_goes_on_and_the_status_is_written_again(case: str) -> None:
    world = World()
    world.run_until("train")
    (pod, _) = world.add_pods("glossary-train-1")
    request = f"progress/{pod['metadata']['uid']}"
    world.responses[request] = HttpResponse(at=0, status=200, body=REPORTED)
    world.settle()
    before, jobs = copy.deepcopy(world.status), world.list("Job", NAMESPACE)
    damaged = copy.deepcopy(before)
    UNREADABLE[case](damaged)
    world.replace_status(world.job, damaged)

    world.tick(30)
    world.settle()

    assert world.list("Job", NAMESPACE) == jobs
    for field in ("observedGeneration", "phase", "message", "plan", "progress", "restarts"):
        assert world.status[field] == before[field], field
    states = [(each["name"], each["state"], each["attempt"]) for each in world.status["stages"]]
    assert states == [(each["name"], each["state"], each["attempt"]) for each in before["stages"]]
    kinds = {each["type"]: (each["status"], each["reason"]) for each in world.status["conditions"]}
    assert kinds == {c["type"]: (c["status"], c["reason"]) for c in before["conditions"]}
