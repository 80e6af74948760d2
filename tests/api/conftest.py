"""A real kube-apiserver with our CRDs, once per session, and a fresh namespace for every test.

It has no controllers and no nodes: only the test and the code under test change objects.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.client import Api, wait_established

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "crds"


def started(folder: Path) -> ControlPlane:
    """A control plane that is not running yet; skips where its binaries cannot be installed."""
    try:
        return ControlPlane(folder)
    except ClusterError as reason:
        pytest.skip(f"no kube-apiserver: {reason}")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver with the CRDs of this checkout established."""
    with started(tmp_path_factory.mktemp("control-plane")) as plane:
        plane.kubectl("apply", "--server-side", "-f", CRDS)
        wait_established(Api(plane.kubeconfig))
        yield plane


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """A client with all permissions."""
    return Api(control_plane.kubeconfig)


@pytest.fixture
def namespace(api: Api) -> str:
    """A namespace for this test alone, which ends with the control plane."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name
