"""Each documented way adds the health checks to Argo CD's ConfigMap and keeps what is in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.apiserver import ControlPlane
from tests.api.charts import helm
from tests.api.client import Api
from tests.unit.gitops.argocd import FOLDER, KINDS, read_script

CHECKS = {f"resource.customizations.health.finetune.dev_{k}": read_script(k) for k in KINDS}
CONFIG: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "argocd-cm", "labels": {"app.kubernetes.io/part-of": "argocd"}},
    "data": {"url": "https://argocd.example.com"},
}


def test_the_component_adds_them_to_a_kustomization_of_argo_cd(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    (tmp_path / "install.yaml").write_text(yaml.safe_dump(CONFIG))
    shutil.copytree(FOLDER, tmp_path / "finetune")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "argocd",
        "resources": ["install.yaml"],
        "components": ["finetune"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    merged = yaml.safe_load(control_plane.kubectl("kustomize", tmp_path))
    metadata = {**CONFIG["metadata"], "namespace": "argocd"}
    assert (merged["metadata"], merged["data"]) == (metadata, {**CONFIG["data"], **CHECKS})


def test_helm_adds_them_to_the_values_of_the_chart_argo_cd(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: argo-cd, version: 0.0.0}")
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"configs": {"cm": CONFIG["data"]}}))
    template = "{{ toYaml .Values.configs.cm }}\n"
    (tmp_path / "templates" / "configmap.yaml").write_text(template)
    names = {key: key.replace(".", r"\.") for key in CHECKS}
    flags = [f"--set-file=configs.cm.{names[k]}={FOLDER / k.rsplit('_')[-1]}.lua" for k in CHECKS]
    rendered = yaml.safe_load(helm("template", "a", tmp_path, *flags))
    assert rendered == {**CONFIG["data"], **CHECKS}


def test_kubectl_adds_them_to_an_installed_argo_cd(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    api.create(CONFIG, namespace)
    files = [f"--from-file={key}={FOLDER / key.rsplit('_')[-1]}.lua" for key in CHECKS]
    generate = ["create", "configmap", "argocd-cm", "--dry-run=client", "-o", "yaml"]
    manifest = control_plane.kubectl(*generate, *files)
    owner = ["--server-side", "--field-manager", "finetune-health"]
    control_plane.kubectl("apply", "-n", namespace, *owner, "-f", "-", stdin=manifest)
    found = api.get("ConfigMap", namespace, "argocd-cm")
    assert found["metadata"]["labels"] == CONFIG["metadata"]["labels"]
    assert found["data"] == {**CONFIG["data"], **CHECKS}
