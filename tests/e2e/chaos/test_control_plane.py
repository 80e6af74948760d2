"""Operators are killed, the API server is killed, etcd hangs: training does not care."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from hack.demo.kubectl import KubectlError
from hack.demo.platform import RELEASE
from tests.e2e.chaos import faults, watching
from tests.e2e.chaos.arena import OPERATOR, OPERATORS, Arena
from tests.e2e.chaos.judging import add_row, assert_as_undisturbed, assert_lost_nothing
from tests.e2e.chaos.runs import Run

pytestmark = pytest.mark.long
KILLS = 20
OUTAGE = 12.0
"""Seconds without an API server: less than the time after which nodes are declared dead."""
PAUSE = 30.0


def test_operators_killed_twenty_times_change_nothing(arena: Arena, dice: random.Random) -> None:
    faults.needs_nodes(arena.engine)
    run = arena.start("operators", training={"maxSteps": 400})
    run.until("its first status", lambda: run.status.get("phase"))
    first, leaders = time.time(), 0
    for number in range(KILLS):
        # How long it is left alone is what makes the moment of the kill a random one.
        time.sleep(dice.uniform(1.0, 9.0))
        assert run.phase not in ("Succeeded", "Failed"), f"it ended before kill {number + 1}"
        leader, pods = leader_of(arena), operators(arena)
        victim = leader if leader in pods and dice.random() < 0.6 else dice.choice(pods)
        hit = faults.kill_operator(arena.platform.system, victim)
        leaders += hit and victim == leader
    over = time.time()
    run.until("a status after the last kill", lambda: run.seen[-1].at > over)
    silent = longest_silence(run, first)
    run.until_ended(seconds=600)
    notes = (
        f"{leaders} of {KILLS} kills hit the leader; the status stood still for {silent:.0f} s at "
        "most"
    )
    add_row(arena, run, f"operator killed (-9) {KILLS} times", None, notes)
    assert {s["name"]: s["attempt"] for s in run.status["stages"]} == dict.fromkeys(
        ("prepare", "train", "evaluate", "export"), 1
    )
    assert run.status.get("restarts", 0) == 0
    assert len(arena.pods.of(run.name, "train")) == 2
    assert leaders, "no kill hit the leader: nothing was proven"
    assert_lost_nothing(run)
    assert_same_beginning(arena, run)


def test_training_goes_on_without_an_api_server(arena: Arena, dice: random.Random) -> None:
    run = arena.start("api-server")
    run.until_step(dice.randint(5, 15))
    with faults.api_server_killed(arena.engine) as at:
        run.until_time(at + OUTAGE)
    back = time.time()
    run.until("a status after it is back", lambda: run.seen[-1].at > back)
    reported = run.seen[-1].at - back
    pause = watching.longest_pause(run.steps(), at)
    run.until_ended()
    notes = (
        f"gone for {back - at:.0f} s, next status {reported:.0f} s later; longest pause between "
        f"two steps {pause:.1f} s"
    )
    add_row(arena, run, "API server killed (-9), then started", None, notes)
    assert run.attempt == 1
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


def test_training_goes_on_while_etcd_hangs(arena: Arena, dice: random.Random) -> None:
    faults.needs_nodes(arena.engine)
    run = arena.start("etcd")
    run.until_step(dice.randint(5, 15))
    with faults.paused("etcd") as at:
        run.until_time(at + PAUSE)
    back = time.time()
    run.until("a status after it continues", lambda: run.seen[-1].at > back)
    reported = run.seen[-1].at - back
    run.until_ended()
    notes = f"next status {reported:.0f} s after it continued"
    add_row(arena, run, f"etcd stopped for {PAUSE:.0f} s", at if run.attempt > 1 else None, notes)
    assert run.status.get("restarts", 0) == 0
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


def leader_of(arena: Arena) -> str:
    """The pod that holds the Lease; empty if that is unknown."""
    try:
        lease = arena.platform.system.json("get", "lease", RELEASE)
    except KubectlError:
        return ""
    holder = str(lease["spec"].get("holderIdentity", ""))
    return next((pod for pod in operators(arena) if holder.startswith(pod)), "")


def operators(arena: Arena) -> list[str]:
    """Pods of operators that run."""
    found = arena.platform.system.json("get", "pods", "-l", OPERATOR)["items"]
    alive = [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]
    names = [pod["metadata"]["name"] for pod in alive]
    assert 0 < len(names) <= OPERATORS + 1
    return names


def longest_silence(run: Run, since: float) -> float:
    """The longest time between two statuses from a moment on."""
    times = [since, *(s.at for s in run.seen if s.at > since)]
    return max(b - a for a, b in itertools.pairwise(times))


def assert_same_beginning(arena: Arena, run: Run) -> None:
    """Its losses begin with those of the shorter, undisturbed run."""
    assert run.compared(arena.baseline) == "equal, bit by bit"
