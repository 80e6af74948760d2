"""The workspace is too small, or another writer fills it while a job trains."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.demo.kubectl import Kubectl
from tests.e2e.chaos import faults
from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.judging import add_row, assert_as_undisturbed, assert_lost_nothing
from tests.e2e.chaos.runs import Run, chaos_job

pytestmark = pytest.mark.long
NAMESPACE = "chaos-full"
LEFT = 2 * 2**20
"""Bytes: enough for what prepare writes, but not for the checkpoints."""


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
    run.until_step(dice.randint(12, 28))
    filler = faults.fill(folder)
    at = filler.stat().st_mtime
    reported = run.until("a status that reports the full volume", lambda: skipped_save(run, at))
    filler.unlink()
    run.until_ended()
    add_row(arena, run, "workspace full, then freed", None, reported)
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


def skipped_save(run: Run, at: float) -> str:
    """The status message about the skipped save."""
    texts = (str(s.status.get("message", "")) for s in run.seen if s.at > at)
    return next(
        (text.partition(": step")[0] for text in texts if "skipped the checkpoint" in text), ""
    )


def test_a_workspace_that_is_too_small_ends_the_job_before_it_trains(
    arena: Arena, small: tuple[Kubectl, Path]
) -> None:
    kubectl, folder = small
    filler = faults.fill(folder)
    os.truncate(filler, filler.stat().st_size - LEFT)
    run = arena.submit(chaos_job("chaos-small"), kubectl)
    run.until_ended("Failed")
    failure = run.status["failure"]
    arena.table.add(run.row("workspace too small from the start", None, "-", failure["message"]))
    assert failure["reason"] == "WorkspaceTooSmall"
    assert failure["remedy"]
    assert run.attempt == 0
