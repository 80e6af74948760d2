"""Brings up what the demo and the end-to-end tests run on, and takes nothing for granted.

Programs, images, cluster, chart, a namespace that enforces the restricted pod security
standard, and in it a volume with the model and the data. Every step can be run twice.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import binaries, engine, kind, paths
from hack.cluster.kubectl import ready_nodes, without_proxies
from hack.demo import assets
from hack.demo.kubectl import Kubectl, KubectlError
from hack.demo.timeline import Timeline
from hack.images import load as image_loader
from hack.images.venv import ml_python

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "finetune-operator"
CRDS_CHART = ROOT / "charts" / "finetune-operator-crds"
SYSTEM_NAMESPACE = "finetune-system"
RELEASE = "finetune-operator"
NAMESPACE = "demo"
ASSETS = "demo-assets"
GRACE_SECONDS = 20.0
VALUES = {
    "image.repository": "localhost/finetune-operator",
    "image.tag": "dev",
    "trainer.image.repository": "localhost/finetune-trainer",
    "trainer.image.tag": "dev",
    "serving.image.repository": "localhost/finetune-vllm-cpu",
    "serving.image.tag": "dev",
    "profiles.default": "cpu",
    "logFormat": "text",
}

LOST_NODE_SECONDS = 5
"""Short, as tests turn nodes off."""


@dataclass(frozen=True)
class Platform:
    """A running cluster with the operator in it."""

    kubectl: Kubectl
    """kubectl in the namespace of the jobs."""
    system: Kubectl
    """kubectl in the operator's namespace."""
    assets: Path
    """This computer's folder behind pvc://demo-assets."""

    def workspace(self, namespace: str) -> Path:
        """This computer's folder behind a namespace's workspace claim."""
        claim = self.kubectl.json("get", "pvc", "finetune-workspace", "-n", namespace)
        return paths.VOLUMES / str(claim["spec"]["volumeName"])


def is_up() -> bool:
    """Whether this checkout's cluster answers."""
    return paths.KUBECONFIG.exists() and bool(ready_nodes())


def take_down() -> None:
    """Take the cluster down."""
    engine.choose().down()


def bring_up(timeline: Timeline) -> Platform:
    """Everything up to, not including, the first FineTuneJob."""
    with timeline.step("Build the cluster's programs"):
        binaries.ensure(("kubectl", "helm") if kind.possible() else binaries.PROGRAMS)
    with timeline.step("Build and load the images"):
        image_loader.load()
    with timeline.step("Fetch model and data"):
        assets.describe()
    with timeline.step("Bring the cluster up"):
        engine.choose().up(GRACE_SECONDS)
        image_loader.load()  # kind takes images only while it runs; elsewhere nothing is left to do
    kubectl = Kubectl(binaries.program("kubectl"), paths.KUBECONFIG, NAMESPACE)
    system = Kubectl(kubectl.program, kubectl.kubeconfig, SYSTEM_NAMESPACE)
    with timeline.step("Install the chart"):
        _namespaces(kubectl)
        _install(system)
    with timeline.step("Offer model and data as a volume"):
        folder = engine.make_volume(ASSETS, NAMESPACE, ASSETS)
        assets.place(folder)
    return Platform(kubectl, system, folder)


def add_tiny_assets(platform: Platform) -> None:
    """A model and rows that train in seconds, in addition to the real ones."""
    script = (
        "import sys; from pathlib import Path; from tests.trainer import tiny\n"
        "root = Path(sys.argv[1])\n"
        "tiny.tiny_model(root / 'models' / 'tiny')\n"
        "tiny.write_rows(root / 'data' / 'tiny.jsonl', tiny.tiny_rows(64))\n"
    )
    command = [str(ml_python()), "-c", script, str(platform.assets)]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "HOME": "/tmp"})


def _namespaces(kubectl: Kubectl) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name in (SYSTEM_NAMESPACE, NAMESPACE):
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": labels},
            }
        )


def _install(system: Kubectl) -> None:
    installed = _exists(system)
    _helm_upgrade(system, f"{RELEASE}-crds", CRDS_CHART, "--wait")
    _upgrade_operator(system)
    if installed:
        # The tag stays `dev` while the image behind it changes.
        system.run("rollout", "restart", f"deployment/{RELEASE}")
    _wait_for_operator(system)


def set_values(system: Kubectl, *flags: str) -> None:
    """Upgrade the operator to the demo's values and those that `flags` of helm set."""
    _upgrade_operator(system, *flags)
    _wait_for_operator(system)


def _upgrade_operator(system: Kubectl, *flags: str) -> None:
    settings = [f"--set-string={key}={value}" for key, value in VALUES.items()]
    settings.append(f"--set=lostNodeSeconds={LOST_NODE_SECONDS}")
    _helm_upgrade(system, RELEASE, CHART, *settings, *flags)


def _wait_for_operator(system: Kubectl) -> None:
    try:
        wait = ("rollout", "status", f"deployment/{RELEASE}", "--timeout=120s")
        system.run(*wait, timeout=150)
    except KubectlError as error:
        print(system.run("get", "pods", "-o", "wide"), file=sys.stderr)
        print(system.run("logs", f"deployment/{RELEASE}", "--tail=30"), file=sys.stderr)
        raise SystemExit(f"the operator did not start: {error}") from None


def _helm_upgrade(system: Kubectl, release: str, chart: Path, *flags: str) -> None:
    command = [str(binaries.program("helm")), "upgrade", "--install", release, str(chart)]
    where = ["--namespace", SYSTEM_NAMESPACE, "--kubeconfig", str(system.kubeconfig)]
    done = subprocess.run(
        [*command, *where, *flags],
        env=without_proxies(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"helm upgrade {release} failed: {done.stderr.strip()}")


def _exists(system: Kubectl) -> bool:
    try:
        system.run("get", "deployment", RELEASE)
    except KubectlError:
        return False
    return True
