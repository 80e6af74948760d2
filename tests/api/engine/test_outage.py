"""The API server stops and comes back, once restored from an older backup."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine import toy
from tests.api.engine.processes import Operator, prepared, until

NAMESPACE = "default"


class Kubelet:
    """Keeps one operator running, as the kubelet does."""

    def __init__(self, plane: ControlPlane, log: Path) -> None:
        self.starts: list[Operator] = []
        self._plane, self._log = plane, log

    def ensure_running(self) -> Operator:
        """The running operator; a new one if the last has ended."""
        if not self.starts or self.starts[-1].process.poll() is not None:
            pod = f"pod-{len(self.starts)}"
            self.starts.append(Operator(self._plane.kubeconfig, NAMESPACE, self._log, pod))
        return self.starts[-1]

    def exit_codes(self) -> list[int | None]:
        """Exit codes of the operators before the running one."""
        return [each.process.poll() for each in self.starts[:-1]]


@pytest.fixture
def kubelet(own_plane: ControlPlane, tmp_path: Path) -> Iterator[Kubelet]:
    kubelet = Kubelet(own_plane, tmp_path)
    yield kubelet
    for each in kubelet.starts:
        each.process.kill()
        each.process.wait()
    print("".join(each.log.read_text()[-4000:] for each in kubelet.starts[-2:]))


def is_carried_out(kubelet: Kubelet, api: Api, name: str) -> bool:
    kubelet.ensure_running()
    return prepared(api, NAMESPACE, name) and any(
        each["metadata"]["name"] == f"{name}-prepare-1" for each in api.list("Job", NAMESPACE)
    )


def test_a_job_is_carried_out_after_an_outage_of_the_api_server(
    own_plane: ControlPlane, own_api: Api, thread: ThreadPoolExecutor, kubelet: Kubelet
) -> None:
    until("it works", lambda: "Cache complete" in kubelet.ensure_running().log.read_text())
    thread.submit(own_plane.kill_apiserver).result()
    cut_off = kubelet.ensure_running()
    until("the leader gives up", lambda: cut_off.process.poll() is not None, 20)
    kubelet.ensure_running()  # it starts while there is no API server

    thread.submit(own_plane.start_apiserver).result()
    own_api.create(toy.finetune_job(NAMESPACE, "outage"))
    took = until("the job is carried out", lambda: is_carried_out(kubelet, own_api, "outage"), 60)

    assert kubelet.exit_codes()[0] == 3
    print(f"\nAPI server killed: working again {took:.1f} s after it was ready")


def test_a_leader_restarts_when_the_api_server_was_restored_from_a_backup(
    own_plane: ControlPlane, own_api: Api, thread: ThreadPoolExecutor, kubelet: Kubelet
) -> None:
    own_api.create(toy.finetune_job(NAMESPACE, "kept"))
    until("kept is carried out", lambda: is_carried_out(kubelet, own_api, "kept"), 60)
    thread.submit(own_plane.back_up).result()
    own_api.create(toy.finetune_job(NAMESPACE, "forgotten"))
    until("forgotten is carried out", lambda: is_carried_out(kubelet, own_api, "forgotten"), 60)
    own_api.delete("Job", NAMESPACE, "kept-prepare-1")
    running, before = kubelet.ensure_running(), len(kubelet.starts)

    thread.submit(own_plane.restore).result()
    took = until("it restarts", lambda: running.process.poll() is not None, 30)
    own_api.create(toy.finetune_job(NAMESPACE, "created-again"))
    until(
        "the new job is carried out", lambda: is_carried_out(kubelet, own_api, "created-again"), 60
    )

    assert running.process.poll() == 3
    assert len(kubelet.starts) > before
    names = {each["metadata"]["name"] for each in own_api.list("Job", NAMESPACE)}
    assert {"kept-prepare-1", "created-again-prepare-1"} <= names
    assert "forgotten-prepare-1" not in names
    print(f"\nbackup restored: the leader restarted {took:.1f} s after the API server was ready")
