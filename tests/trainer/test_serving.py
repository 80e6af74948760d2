"""vLLM starts with the command line of the operator where `python3` is the only Python."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_operator.decision import Manifest, Settings
from finetune_operator.resources.deployment import build_deployment
from finetune_operator.resources.vllm import MODEL_PATH, PORT, Artifact, ServedRevision

from tests.trainer.tiny import tiny_model

VALUES = Path(__file__).parents[2] / "charts" / "finetune-operator" / "values.yaml"
START_SECONDS = 240.0


def release_container() -> Manifest:
    """The container of a revision on the chart's CPU profile, in a cluster with IPv6 addresses."""
    spec = yaml.safe_load(VALUES.read_text())["profiles"]["pools"]["cpu"]
    endpoint = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": "glossary", "namespace": "team-a", "uid": "e0000000"},
    }
    served = ServedRevision(
        endpoint=endpoint,
        number=1,
        key="key",
        artifact=Artifact("finetune-workspace", "artifacts/job-a", "pvc://a", "sha256:a"),
        profile=AcceleratorProfile.model_validate({"name": "cpu", "spec": spec}),
        gpus=1,
        replicas=1,
        settings=Settings("trainer:v1", "vllm:v1", has_ipv6_pods=True),
    )
    pod = build_deployment(served)["spec"]["template"]["spec"]
    container: Manifest = pod["containers"][0]
    return container


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(port: int, path: str, host: str = "::1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Poll as the kubelet's startup probe does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if get(port, "/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not healthy after {START_SECONDS:g} s: {log.read_text()[-4000:]}")


@pytest.fixture
def only_python3(tmp_path: Path) -> str:
    """A PATH with the system's programs, of which `python3` is the only Python: this one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith("python"):
            (folder / program.name).symlink_to(program)
    python3 = folder / "python3"
    python3.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python3.chmod(0o755)
    return str(folder)


def test_vllm_serves_where_the_only_python_is_python3(only_python3: str, tmp_path: Path) -> None:
    assert shutil.which("python", path=only_python3) is None
    container, port, log = release_container(), free_port(), tmp_path / "log"
    model = tiny_model(tmp_path / "model", context=1024)
    here = {MODEL_PATH: str(model), str(PORT): str(port)}
    command = [here.get(each, each) for each in container["command"] + container["args"]]
    environment = {each["name"]: each["value"] for each in container["env"]}
    environment |= {"PATH": only_python3, "HOME": str(tmp_path)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_healthy(process, port, log)
        models = json.loads(get(port, "/v1/models")[1])
        assert [each["id"] for each in models["data"]] == ["glossary"]
        assert get(port, "/health", "127.0.0.1")[0] == 200
    finally:
        # The engine is a process of its own, which outlives the server when that is killed.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
