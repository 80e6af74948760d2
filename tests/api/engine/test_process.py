"""Real operator processes: which one leads, how they end, what a frozen one does."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine import toy
from tests.api.engine.gateway import Gateway
from tests.api.engine.processes import Operator, holder, prepared, until

Start = Callable[..., Operator]


@pytest.fixture
def start(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Start an operator; the fixture kills it at the end of the test."""
    operators: list[Operator] = []

    def start(pod: str, kubeconfig: Path | None = None) -> Operator:
        operators.append(Operator(kubeconfig or control_plane.kubeconfig, namespace, tmp_path, pod))
        return operators[-1]

    yield start
    for each in operators:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


def test_a_standby_takes_over_within_ten_seconds_of_a_kill(
    start: Start, api: Api, namespace: str
) -> None:
    leader = start("pod-1")
    until("pod-1 works", lambda: leader.has_logged("Cache complete"))
    standby = start("pod-2")
    until("pod-2 answers", standby.is_healthy)
    assert holder(api, namespace) == "pod-1"

    leader.process.kill()
    api.create(toy.finetune_job(namespace, "a"))
    took = until("the standby prepares the job", lambda: prepared(api, namespace, "a"))

    assert holder(api, namespace) == "pod-2"
    print(f"\ntake-over after kill -9, until the next status write: {took:.1f} s")
    assert took <= 10


def test_a_stopped_leader_releases_the_lease_and_exits_with_zero(
    start: Start, api: Api, namespace: str
) -> None:
    leader = start("pod-1")
    until("pod-1 works", lambda: leader.has_logged("Cache complete"))
    standby = start("pod-2")
    until("pod-2 answers", standby.is_healthy)

    leader.process.terminate()
    assert leader.process.wait(timeout=20) == 0, leader.log.read_text()
    took = until("pod-2 leads", lambda: holder(api, namespace) == "pod-2")
    print(f"\ntake-over after SIGTERM: {took:.1f} s after the exit")
    assert took < 5
    assert "Traceback" not in leader.log.read_text()

    standby.process.send_signal(signal.SIGINT)
    assert standby.process.wait(timeout=20) == 0


def test_a_leader_that_was_frozen_exits_without_another_write(
    start: Start, api: Api, namespace: str
) -> None:
    leader = start("pod-1")
    until("pod-1 works", lambda: leader.has_logged("Cache complete"))
    leader.process.send_signal(signal.SIGSTOP)
    standby = start("pod-2")
    until("pod-2 leads", lambda: holder(api, namespace) == "pod-2")
    standby.process.send_signal(signal.SIGSTOP)  # so that every write from now on is pod-1's
    api.create(toy.finetune_job(namespace, "a"))

    leader.process.send_signal(signal.SIGCONT)

    assert leader.process.wait(timeout=20) == 3
    assert "Leadership lost" in leader.log.read_text()
    assert not prepared(api, namespace, "a")
    assert not api.list("Job", namespace)


def test_of_two_operators_that_start_together_one_leads(
    start: Start, api: Api, namespace: str
) -> None:
    both = [start("pod-1"), start("pod-2")]
    until("one leads", lambda: any(each.has_logged("Became the leader") for each in both))
    until("both answer", lambda: all(each.is_healthy() for each in both))
    api.create(toy.finetune_job(namespace, "a"))
    until("the job is prepared", lambda: prepared(api, namespace, "a"))
    assert sum(each.has_logged("Became the leader") for each in both) == 1


def test_a_job_that_is_applied_while_no_operator_runs_is_carried_out_by_the_next_one(
    start: Start, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    first = start("pod-1")
    until("pod-1 works", lambda: first.has_logged("Cache complete"))
    first.process.kill()
    first.process.wait()

    job = json.dumps(toy.finetune_job(namespace, "a"))
    assert "created" in control_plane.kubectl("apply", "-f", "-", stdin=job)
    assert not prepared(api, namespace, "a")

    start("pod-2")
    took = until("the job is prepared", lambda: prepared(api, namespace, "a"))
    print(f"\napplied while no operator ran, prepared {took:.1f} s after the next was started")


async def test_a_leader_that_is_cut_off_exits_and_a_standby_takes_over(
    start: Start, control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    async with Gateway(control_plane, tmp_path) as gateway:
        leader = start("pod-1", gateway.kubeconfig)
        await asyncio.to_thread(until, "pod-1 works", lambda: leader.has_logged("Cache complete"))
        standby = start("pod-2")
        await asyncio.to_thread(until, "pod-2 answers", standby.is_healthy)

        gateway.partition()
        api.create(toy.finetune_job(namespace, "a"))
        took = await asyncio.to_thread(
            until, "pod-2 creates the job's children", lambda: bool(api.list("Job", namespace))
        )
        assert holder(api, namespace) == "pod-2"
        print(f"\ntake-over after the leader was cut off: {took:.1f} s")
        assert took <= 12, "8 s of the Lease, one retry, and the time of the lists"

        before = api.list("FineTuneJob", namespace), api.list("Job", namespace)
        gateway.heal()  # the requests that it had sent arrive now
        assert await asyncio.to_thread(leader.process.wait, 20) == 3
        assert (api.list("FineTuneJob", namespace), api.list("Job", namespace)) == before
