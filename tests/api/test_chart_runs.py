"""The operator started with the chart's arguments and its ServiceAccount's token."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api import API_VERSION

from hack.cluster.apiserver import ControlPlane
from hack.cluster.process import wait_for
from tests.api.charts import CRDS, OPERATOR, RELEASE, SYSTEM, one, rendered, upgrade
from tests.api.client import Api, Manifest
from tests.api.conftest import ROOT, started

SPECS: dict[str, dict[str, Any]] = {
    "FineTuneJob": {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "s3://bucket/rows.jsonl"}]},
    },
    "ModelEndpoint": {
        "artifact": {"uri": "pvc://claim/folder", "digest": "sha256:" + 64 * "0"},
    },
}


@contextlib.contextmanager
def operator(plane: ControlPlane, folder: Path, *values: str) -> Iterator[Path]:
    """Install the chart and run its operator in a process here, because no kubelet runs pods;
    yields its log."""
    upgrade(plane, RELEASE, OPERATOR, *(f"--set={each}" for each in values))
    token = plane.kubectl("create", "token", RELEASE, "-n", SYSTEM).strip()
    access = yaml.safe_load(plane.kubeconfig.read_text())
    access["users"][0]["user"] = {"token": token}
    kubeconfig, log = folder / "operator.kubeconfig", folder / "operator.log"
    kubeconfig.write_text(yaml.safe_dump(access))
    pod = one(rendered(*values), "Deployment")["spec"]["template"]["spec"]
    here = [f"--kubeconfig={kubeconfig}", "--health-port=0"]
    command = [sys.executable, "-m", "finetune_operator", *pod["containers"][0]["args"], *here]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    with (
        log.open("w") as stream,
        subprocess.Popen(command, env=environment, stderr=stream) as process,
    ):
        try:
            yield log
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()


def wish(api: Api, kind: str, namespace: str) -> None:
    metadata = {"name": kind.lower(), "namespace": namespace}
    api.create({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": SPECS[kind]})


def children(api: Api, namespace: str) -> list[Manifest]:
    """What the operator created for one job and one endpoint."""
    return [*api.list("Job", namespace), *api.list("Deployment", namespace)]


def count_use(api: Api) -> tuple[int, int] | None:
    """Jobs and endpoints in the status of the profile `cpu`."""
    status = api.get("AcceleratorProfile", "", "cpu").get("status")
    return (status["jobs"], status["endpoints"]) if status else None


def phases(api: Api, namespace: str) -> list[str]:
    found = [api.get(kind, namespace, kind.lower()) for kind in SPECS]
    return [each.get("status", {}).get("phase", "") for each in found]


@pytest.mark.timeout(180)
def test_the_operator_works_in_all_namespaces_or_in_the_listed_ones(tmp_path: Path) -> None:
    with started(tmp_path / "plane") as plane:
        upgrade(plane, "crds", CRDS, "--wait")
        api = Api(plane.kubeconfig)
        for name in ("first", "second", "third"):
            api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

        with operator(plane, tmp_path, "profiles.default=cpu") as log:
            for kind in SPECS:
                wish(api, kind, "first")
            wait_for(lambda: len(children(api, "first")) == 2, 60, "a Job and a Deployment")
            wait_for(lambda: phases(api, "first") == ["Preparing", "Deploying"], 60, "phases")
            wait_for(lambda: count_use(api) == (1, 1), 60, "the status of the profile")
        assert "orbidden" not in log.read_text()

        for kind in SPECS:
            wish(api, kind, "second")
            wish(api, kind, "third")
        with operator(plane, tmp_path, "profiles.default=cpu", "watchNamespaces={second}") as log:
            wait_for(lambda: len(children(api, "second")) == 2, 60, "a Job and a Deployment")
        assert "orbidden" not in log.read_text()
        assert count_use(api) == (1, 1), "an operator of some namespaces writes no counts"
        # As docs/tasks/describe-a-pool.md removes it.
        remove = '[{"op": "remove", "path": "/status"}]'
        plane.kubectl("patch", "accel", "cpu", "--subresource=status", "--type=json", "-p", remove)
        assert count_use(api) is None
        assert phases(api, "third") == ["", ""]
