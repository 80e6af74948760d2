"""The charts as Helm renders and installs them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.apiserver import ControlPlane
from hack.cluster.binaries import program
from hack.cluster.process import run
from tests.api.client import Api, Manifest

CHARTS = Path(__file__).resolve().parents[2] / "charts"
OPERATOR = CHARTS / "finetune-operator"
CRDS = CHARTS / "finetune-operator-crds"
RELEASE = "finetune-operator"
SYSTEM = "finetune-system"


def helm(*words: str | Path) -> str:
    """What helm printed; ClusterError when it failed."""
    return run([program("helm"), *words], timeout=120)


@functools.cache
def template(*settings: str, release: str = RELEASE, namespace: str = SYSTEM) -> str:
    """The operator's chart rendered with `--set` settings, which have no empty list: `name=[]`."""
    flags = [f"--set{'-json' * each.endswith('=[]')}={each}" for each in settings]
    return helm(
        "template", release, OPERATOR, "--namespace", namespace, "--kube-version", "1.35.0", *flags
    )


def rendered(*settings: str, **names: str) -> list[Manifest]:
    """The objects of the operator's chart."""
    documents: list[Any] = list(yaml.safe_load_all(template(*settings, **names)))
    return [each for each in documents if each]


def one(manifests: list[Manifest], kind: str) -> Manifest:
    """The only object of a kind."""
    (found,) = (each for each in manifests if each["kind"] == kind)
    return found


def upgrade(plane: ControlPlane, release: str, chart: Path, *flags: str) -> str:
    """`helm upgrade --install` on a control plane."""
    where = ("--kubeconfig", plane.kubeconfig, "--namespace", SYSTEM, "--create-namespace")
    return helm("upgrade", "--install", release, chart, *where, *flags)


def dry_run(plane: ControlPlane, manifests: list[Manifest]) -> None:
    """Send the objects to the API server, which checks and drops them; ClusterError if it refuses
    one. Their namespaces are created."""
    api = Api(plane.kubeconfig)
    known = {each["metadata"]["name"] for each in api.list("Namespace")}
    for name in {each["metadata"].get("namespace", SYSTEM) for each in manifests} - known:
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    flags = ("--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    printed = plane.kubectl("apply", *flags, stdin=yaml.safe_dump_all(manifests))
    assert printed.count("(server dry run)") == len(manifests), printed
