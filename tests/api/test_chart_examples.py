"""The API server accepts the examples of values and what is generated from the chart."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml
from finetune_api.acceleratorprofile import AcceleratorProfileSpec

from hack.charts.policies import helm_arguments, render_policies
from hack.cluster.apiserver import ControlPlane
from tests.api.charts import CRDS, OPERATOR, RELEASE, SYSTEM, dry_run, helm
from tests.api.client import Manifest
from tests.api.conftest import ROOT

EXAMPLES = sorted((OPERATOR / "examples").glob("*.yaml"))
POLICIES = ROOT / "docs" / "reference" / "network-policies.yaml"


def rendered_with(values: Path, *flags: str) -> list[Manifest]:
    """The chart with the values of a file."""
    where = ("--namespace", SYSTEM, "--kube-version", "1.35.0", "--values", values)
    return [o for o in yaml.safe_load_all(helm("template", RELEASE, OPERATOR, *where, *flags)) if o]


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda path: path.stem)
def test_the_api_server_accepts_every_object_of_an_example(
    control_plane: ControlPlane, values: Path
) -> None:
    objects = rendered_with(values, "--set=watchNamespaces={team-a}")
    kinds = {each["kind"] for each in objects}
    assert {"Deployment", "NetworkPolicy", "AcceleratorProfile"} <= kinds
    dry_run(control_plane, objects)


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_one_default_profile(values: Path) -> None:
    specs = [o["spec"] for o in rendered_with(values) if o["kind"] == "AcceleratorProfile"]
    parsed = [AcceleratorProfileSpec.model_validate(spec) for spec in specs]
    assert [each.default for each in parsed].count(True) == 1


def test_training_on_eks_gets_the_devices_of_the_fabric() -> None:
    objects = rendered_with(OPERATOR / "examples" / "eks-efa.yaml")
    (pool,) = (o["spec"] for o in objects if o["kind"] == "AcceleratorProfile")
    assert pool["extraResources"].keys() == {"vpc.amazonaws.com/efa", "hugepages-2Mi"}
    assert pool["nodeSelector"].keys() == {"node.kubernetes.io/instance-type"}


def test_nodes_of_gke_are_selected_by_its_own_label_only() -> None:
    objects = rendered_with(OPERATOR / "examples" / "gke.yaml")
    profiles = [o["spec"] for o in objects if o["kind"] == "AcceleratorProfile"]
    assert len(profiles) == 5
    keys = {key for spec in profiles for key in spec["nodeSelector"]}
    assert keys == {"cloud.google.com/gke-accelerator"}


def test_karpenter_knows_the_labels_of_every_pool_before_it_has_nodes() -> None:
    objects = rendered_with(OPERATOR / "examples" / "karpenter.yaml")
    profiles = {
        o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "AcceleratorProfile"
    }
    assert profiles.keys() == {"h100-80gb", "a100-80gb", "l4-24gb"}
    keys = {key for spec in profiles.values() for key in spec["nodeSelector"]}
    assert keys == {
        "karpenter.k8s.aws/instance-gpu-name",
        "karpenter.k8s.aws/instance-gpu-count",
        "node.kubernetes.io/instance-type",
    }


def test_without_internet_nothing_public_is_reached() -> None:
    values = OPERATOR / "examples" / "air-gapped.yaml"
    objects = rendered_with(values, "--set=watchNamespaces={team-a}")
    text = yaml.safe_dump_all(objects)
    assert "ghcr.io" not in text
    assert text.count("registry.example.internal/") == 3
    (prepare,) = [o for o in objects if o["metadata"]["name"].endswith("-prepare")]
    assert prepare["spec"]["egress"] == [{"to": [{"ipBlock": {"cidr": "10.20.0.0/24"}}]}]


def test_the_documentation_names_every_example() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert len(EXAMPLES) == 5
    assert [each.name for each in EXAMPLES if f"examples/{each.name}" not in page] == []


def test_the_policies_to_apply_by_hand_are_those_of_the_chart() -> None:
    wanted = render_policies(helm(*helm_arguments(str(OPERATOR))))
    remedy = "the chart has changed: run `make charts` and commit what it writes"
    assert POLICIES.read_text() == wanted, remedy


def test_the_api_server_accepts_the_policies_to_apply_by_hand(control_plane: ControlPlane) -> None:
    manifests = list(yaml.safe_load_all(POLICIES.read_text()))
    assert len(manifests) == 5
    assert not [each for each in manifests if "namespace" in each["metadata"]]
    dry_run(control_plane, manifests)


@pytest.mark.parametrize("chart", [OPERATOR, CRDS], ids=lambda chart: chart.name)
def test_the_icon_is_the_file_in_the_chart(chart: Path) -> None:
    kind, _, data = yaml.safe_load((chart / "Chart.yaml").read_text())["icon"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data) == (OPERATOR / "icon.svg").read_bytes()
