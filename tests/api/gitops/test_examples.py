"""The trees of examples/gitops render, and the API server and our charts accept what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.apiserver import ControlPlane
from tests.api.charts import helm
from tests.api.client import Manifest
from tests.api.gitops.examples import GITOPS, ROOT, find_document, read_documents

OPERATOR = read_documents(GITOPS / "argocd" / "operator.yaml")[0]["spec"]
MODELS = read_documents(GITOPS / "argocd" / "models.yaml")[0]["spec"]
RELEASES = read_documents(GITOPS / "flux" / "operator" / "releases.yaml")
KUSTOMIZATIONS = [
    each
    for name in ("operator", "models")
    for each in read_documents(GITOPS / "flux" / f"{name}.yaml")
]


def run_kustomize(plane: ControlPlane, folder: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(plane.kubectl("kustomize", folder)))


def test_the_models_are_applied_and_show_no_difference(control_plane: ControlPlane) -> None:
    tree = ["--server-side", "-k", GITOPS / "models"]
    control_plane.kubectl("apply", *tree)
    assert control_plane.kubectl("diff", *tree) == ""


def test_no_tool_deletes_a_model_by_accident(control_plane: ControlPlane) -> None:
    protected = {
        "Namespace": "Prune=false,Delete=false",
        "FineTuneJob": "Prune=confirm,Delete=confirm",
    }
    found = {
        each["kind"]: each["metadata"] for each in run_kustomize(control_plane, GITOPS / "models")
    }
    for kind, options in protected.items():
        annotations = found[kind]["annotations"]
        assert annotations["argocd.argoproj.io/sync-options"] == options
        assert annotations["kustomize.toolkit.fluxcd.io/prune"] == "disabled"


def test_the_endpoint_serves_an_artifact_of_the_workspace() -> None:
    endpoint = find_document(GITOPS / "models" / "endpoint.yaml", "support-bot")
    assert endpoint["spec"]["artifact"]["uri"].startswith("pvc://finetune-workspace/artifacts/")


def list_charts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each chart of the examples with its values."""
    for source in OPERATOR["sources"]:
        yield source["path"], source.get("helm", {}).get("valuesObject", {})
    for release in RELEASES:
        chart: str = release["spec"]["chart"]["spec"]["chart"]
        yield chart.removeprefix("./"), release["spec"].get("values", {})


@pytest.mark.parametrize(("chart", "values"), list_charts())
def test_the_charts_accept_the_values(chart: str, values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    rendered = helm("template", "a", ROOT / chart, "--kube-version", "1.35.0", "--values", file)
    assert rendered.count("registry.example.com/") == (2 if values else 0)


def test_argo_cd_applies_on_the_server_and_does_not_delete_a_job_to_change_it() -> None:
    for spec in (OPERATOR, MODELS):
        options = spec["syncPolicy"]["syncOptions"]
        assert "ServerSideApply=true" in options
        assert not {"Replace=true", "Force=true"} & {*options}
    assert (ROOT / MODELS["source"]["path"]).is_dir()


def test_flux_finds_its_folders_and_the_operator_comes_first(control_plane: ControlPlane) -> None:
    operator, models = KUSTOMIZATIONS
    for each in KUSTOMIZATIONS:
        assert run_kustomize(control_plane, ROOT / each["spec"]["path"])
        assert "force" not in each["spec"], "Flux would delete a job to change it"
    assert operator["spec"]["wait"] is True
    assert models["spec"]["dependsOn"] == [{"name": operator["metadata"]["name"]}]
    crds, release = RELEASES
    assert release["spec"]["dependsOn"] == [{"name": crds["metadata"]["name"]}]


def test_flux_waits_for_objects_that_it_applies(control_plane: ControlPlane) -> None:
    _, models = KUSTOMIZATIONS
    applied = [
        {"name": each["metadata"]["name"], "kind": each["kind"], "apiVersion": each["apiVersion"]}
        for each in run_kustomize(control_plane, GITOPS / "models")
    ]
    for check in models["spec"]["healthChecks"]:
        assert {key: check[key] for key in ("name", "kind", "apiVersion")} in applied
