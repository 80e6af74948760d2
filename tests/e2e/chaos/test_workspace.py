"""The workspace is too small, or somebody fills it while a job trains."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.demo.kubectl import Kubectl
from tests.e2e.chaos import faults
from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.judging import add_row, assert_as_undisturbed, assert_lost_nothing
from tests.e2e.chaos.runs import EVERY, Run, chaos_job

pytestmark = pytest.mark.long
NAMESPACE = "chaos-full"


@pytest.fixture
def small(arena: Arena) -> Iterator[tuple[Kubectl, Path]]:
    """A namespace with a workspace of its own, and where it is here."""
    faults.needs_nodes(arena.engine)
    with faults.small_workspace(arena.kubectl, NAMESPACE, mib=64) as folder:
        kubectl = Kubectl(arena.kubectl.program, arena.kubectl.kubeconfig, NAMESPACE)
        faults.offer_assets(arena.platform.assets, NAMESPACE)
        yield kubectl, folder
        arena.clean()


def test_a_full_workspace_costs_checkpoints_and_no_steps(
    arena: Arena, dice: random.Random, small: tuple[Kubectl, Path]
) -> None:
    kubectl, folder = small
    run = arena.submit(chaos_job("chaos-full"), kubectl)
    step = run.until_step(dice.randint(12, 28))
    filler = faults.fill(folder)
    at = filler.stat().st_mtime
    run.until_step(step.number + 2 * EVERY)
    told = told_of(run, at)
    filler.unlink()
    run.until_ended()
    add_row(arena, run, "workspace full, then freed", at, told)
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


def told_of(run: Run, at: float) -> str:
    """What the status said of it."""
    words = ("space", "full")
    texts = [str(s.status.get("message", "")) for s in run.seen if s.at > at]
    found = [text for text in texts if any(word in text.lower() for word in words)]
    assert found, "the status did not tell that the workspace is full"
    return found[0]


def test_a_workspace_that_is_too_small_ends_the_job_before_it_trains(
    arena: Arena, small: tuple[Kubectl, Path]
) -> None:
    kubectl, folder = small
    filler = faults.fill(folder)
    filler.open("ab").truncate(filler.stat().st_size - 6 * 2**20)
    run = arena.submit(chaos_job("chaos-small"), kubectl)
    run.until_ended("Failed")
    at = run.seen[0].at
    failure = run.status["failure"]
    arena.table.add(run.row("workspace too small from the start", at, "-", failure["message"]))
    assert failure["reason"] == "WorkspaceTooSmall"
    assert failure["remedy"]
    assert run.attempt == 0
