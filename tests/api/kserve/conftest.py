"""A real kube-apiserver with the operator's and KServe's CRDs, and the operator's real engine.

KServe itself does not run: `manager` makes the writes of its manager. The CRDs are generated from
the SDK's models. The SDK is installed into a folder of its own, because in the development
environment it would change the versions of other packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hack.cluster.apiserver import ControlPlane
from hack.cluster.paths import cache_dir
from hack.images.cache import digest, made
from hack.images.uv import uv
from tests.api.client import Api, wait_established
from tests.api.conftest import CRDS, ROOT, started
from tests.api.kserve.drive import Operator
from tests.api.kserve.manager import KServeManager
from tests.api.kserve.model_server import ModelServer

LOCK = ROOT / "requirements" / "kserve.lock"
GENERATOR = Path(__file__).with_name("crds.py")


def kserve_sdk() -> Path:
    """Folder with the KServe SDK, installed on first use."""
    return made(cache_dir() / f"kserve-sdk-{digest(LOCK)}", _install, "the KServe SDK")


def kserve_crds() -> Path:
    """File with KServe's CRDs as a JSON list."""
    target = cache_dir() / f"kserve-crds-{digest(LOCK, GENERATOR)}.json"
    return made(target, _generate, "KServe's CRDs")


@pytest.fixture(scope="session")
def kserve_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server that serves ModelEndpoint and InferenceService."""
    with started(tmp_path_factory.mktemp("kserve-plane")) as plane:
        plane.kubectl("apply", "--server-side", "-f", CRDS)
        crds = {"apiVersion": "v1", "kind": "List", "items": json.loads(kserve_crds().read_text())}
        plane.kubectl("create", "-f", "-", stdin=json.dumps(crds))
        wait_established(Api(plane.kubeconfig))
        yield plane


@pytest.fixture(scope="session")
def api(kserve_plane: ControlPlane) -> Api:
    """A client with every right."""
    return Api(kserve_plane.kubeconfig)


@pytest.fixture
def namespace(api: Api) -> str:
    """A namespace of this test alone."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


@pytest.fixture
def server() -> Iterator[ModelServer]:
    """The model server of all pods, on a loopback address of its own."""
    with ModelServer() as running:
        yield running


@pytest.fixture
def manager(api: Api, namespace: str, server: ModelServer) -> KServeManager:
    """The writes of KServe's manager."""
    return KServeManager(api, namespace, server.address)


@pytest.fixture
async def operator(kserve_plane: ControlPlane, namespace: str) -> AsyncIterator[Operator]:
    """The operator's engine, which reconciles when a test calls it."""
    running = await Operator.start(kserve_plane.kubeconfig, namespace)
    yield running
    await running.stop()


def _install(scratch: Path) -> None:
    command = [str(uv()), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    place = ["--python", sys.executable, "--target", str(scratch), "-r", str(LOCK)]
    subprocess.run([*command, *place], check=True)


def _generate(scratch: Path) -> None:
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    argv = [sys.executable, str(GENERATOR), str(kserve_sdk())]
    done = subprocess.run(argv, check=True, capture_output=True, env=environment)
    scratch.write_bytes(done.stdout)
