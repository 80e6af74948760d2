"""The API server for tests is real: tokens, RBAC, controllers on demand, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from hack.cluster.process import run, wait_for

pytestmark = pytest.mark.timeout(1800)  # the first use builds it


def test_a_service_account_may_do_what_its_role_allows_and_no_more(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as cp:
        cp.kubectl("create", "serviceaccount", "robot")
        cp.kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
        cp.kubectl("create", "rolebinding", "r", "--role=reader", "--serviceaccount=default:robot")
        token = cp.kubectl("create", "token", "robot").strip()
        kubectl = [str(cp.binaries / "kubectl"), "--kubeconfig", "/dev/null", "--server", cp.url]
        trust = ["--certificate-authority", str(tmp_path / "pki/ca.crt"), "--token", token]

        run([*kubectl, *trust, "get", "configmaps"])
        with pytest.raises(ClusterError, match='cannot list resource "secrets"'):
            run([*kubectl, *trust, "get", "secrets"])


def test_it_keeps_its_objects_over_a_restart(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as cp:
        cp.kubectl("create", "configmap", "kept", "--from-literal=a=b")
        cp.restart_apiserver()
        assert cp.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "b"


def test_with_controllers_a_deployment_gets_its_pods(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, controllers=True) as cp:
        cp.kubectl("create", "deployment", "web", "--image=localhost/any", "--replicas=2")
        names = ("get", "pods", "-l", "app=web", "-o", "name")
        wait_for(lambda: len(cp.kubectl(*names).split()) == 2, 60, "two pods", 0.2)


def test_no_process_outlives_the_context(tmp_path: Path) -> None:
    def running() -> list[str]:
        command_lines = (p / "cmdline" for p in Path("/proc").iterdir() if p.name.isdigit())
        return [line for path in command_lines if str(tmp_path) in (line := _read(path))]

    with ControlPlane(tmp_path, controllers=True):
        wait_for(lambda: len(running()) == 3, 10, "three processes")
    assert running() == []


def _read(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
