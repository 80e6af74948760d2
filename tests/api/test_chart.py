"""The charts render valid, safe objects, which install and upgrade on a real API server."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.acceleratorprofile import AcceleratorProfileSpec, CpuPods, Limits, Toleration
from finetune_api.artifact_retention import RETENTION_PATTERN
from finetune_api.base import (
    DNS_LABEL_PATTERN,
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    OBJECT_NAME_PATTERN,
    QUANTITY_PATTERN,
)
from finetune_api.pod_options import (
    AUTOSCALER_PREFIX,
    ENV_PATTERN,
    RESERVED_KEY_PATTERN,
    SYSTEM_CLASS_PATTERN,
    EnvVar,
    PodMetadata,
)
from finetune_operator import settings

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.charts import CRDS, OPERATOR, RELEASE, helm, one, rendered, template, upgrade
from tests.api.client import Api, Manifest
from tests.api.conftest import started

RBAC = "rbac.authorization.k8s.io/v1"
PROFILES = {"a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb", "l4-24gb", "cpu"}


def container(*values: str) -> dict[str, Any]:
    """The operator's container."""
    (out,) = one(rendered(*values), "Deployment")["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = out
    return found


def test_every_image_can_be_pinned_by_its_digest() -> None:
    names = ("image", "trainer", "serving")
    digests = {name: f"sha256:{number:064x}" for number, name in enumerate(names)}
    found = container(
        f"image.digest={digests['image']}",
        f"trainer.image.digest={digests['trainer']}",
        f"serving.image.digest={digests['serving']}",
        "image.tag=v1",
    )
    options = settings.parse(found["args"], {}).settings
    assert found["image"] == f"ghcr.io/finetune-dev/finetune-operator@{digests['image']}"
    assert options.trainer_image == f"ghcr.io/finetune-dev/finetune-trainer@{digests['trainer']}"
    assert options.serving_image == f"vllm/vllm-openai@{digests['serving']}"


def profiles(*values: str) -> dict[str, dict[str, Any]]:
    found = [each for each in rendered(*values) if each["kind"] == "AcceleratorProfile"]
    return {each["metadata"]["name"]: each["spec"] for each in found}


def test_every_pool_of_gpus_has_the_peak_of_its_devices() -> None:
    peaks = {name: spec.get("peakFlopsPerDevice") for name, spec in profiles().items()}
    assert peaks.pop("cpu") is None
    assert peaks == {
        "a100-40gb": 3.12e14,
        "a100-80gb": 3.12e14,
        "h100-80gb": 9.89e14,
        "h200-141gb": 9.89e14,
        "l4-24gb": 1.21e14,
    }


@pytest.mark.parametrize("chart", [OPERATOR, CRDS], ids=lambda chart: chart.name)
def test_helm_lint_finds_no_problem(chart: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", chart)


def test_the_operator_parses_the_arguments_of_the_chart() -> None:
    values = (
        "image.tag=v1",
        "trainer.image.tag=v2",
        "workspace.storageClass=nfs",
        "workspace.modelRetentionDays=0",
        "scaleUpSeconds=900",
        "lostNodeSeconds=0",
        r"cpuPods.nodeSelector.kubernetes\.io/arch=amd64",
        "cpuPods.tolerations[0].key=cpu",
        "cpuPods.tolerations[0].operator=Exists",
        "cpuPods.limits.cpu=4500m",
        "cpuPods.maxMemory=60Gi",
        "trainer.serviceAccounts={s3-reader,gcs-reader}",
        "cpuPods.runtimeClassName=kata",
        "cpuPods.priorityClassName=batch",
        r"cpuPods.podMetadata.annotations.sidecar\.istio\.io/inject=off",
        "cpuPods.env[0].name=NO_PROXY",
        r"cpuPods.env[0].value=.svc\,10.0.0.0/8",
        "logFormat=text",
    )
    pinned = "serving.image.digest=sha256:" + 64 * "a"
    options = settings.parse(container(*values, pinned, "imagePullSecrets={reg,two}")["args"], {})

    assert options.settings.trainer_image.endswith("/finetune-trainer:v2")
    assert options.settings.serving_image == "vllm/vllm-openai@sha256:" + 64 * "a"
    assert options.settings.image_pull_secrets == ("reg", "two")
    assert options.settings.workspace_storage_class == "nfs"
    assert options.settings.model_retention_days == 0
    assert options.settings.scale_up_seconds == 900
    assert options.settings.lost_node_seconds == 0
    assert options.settings.cpu_pods.node_selector == {"kubernetes.io/arch": "amd64"}
    assert [each.key for each in options.settings.cpu_pods.tolerations] == ["cpu"]
    assert options.settings.cpu_pods.limits == Limits(cpu="4500m")
    assert options.settings.cpu_pods.max_memory == "60Gi"
    assert options.settings.allowed_service_accounts == ("s3-reader", "gcs-reader")
    assert options.settings.cpu_pods.runtime_class_name == "kata"
    assert options.settings.cpu_pods.priority_class_name == "batch"
    metadata = PodMetadata(annotations={"sidecar.istio.io/inject": "off"})
    assert options.settings.cpu_pods.pod_metadata == metadata
    assert options.settings.cpu_pods.env == [EnvVar(name="NO_PROXY", value=".svc,10.0.0.0/8")]
    assert options.lease_namespace == "finetune-system"
    assert options.lease_name == RELEASE
    assert options.log_format == "text"
    assert options.namespaces == ()


@pytest.mark.parametrize(
    "release", ["my.release", "7b", "a.finetune-operator", "9" * 53, "x." * 26]
)
def test_every_name_is_valid_whatever_the_release_is_called(release: str) -> None:
    objects = rendered(
        "metrics.serviceMonitor.enabled=true", release=release.rstrip("."), namespace="2026"
    )
    for each in objects:
        name = each["metadata"]["name"]
        assert each["metadata"].get("namespace", "2026") == "2026"
        if each["kind"] == "Service":
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name), name
        for value in each["metadata"]["labels"].values():
            assert len(value) <= 63
            assert re.match(LABEL_VALUE_PATTERN, value), value
    (out,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    settings.parse(out["args"], {})


@pytest.mark.parametrize("user", [0, 65532, 1000650000])
def test_the_user_of_every_pod_is_a_value(user: int) -> None:
    pod = one(rendered(f"userId={user}"), "Deployment")["spec"]["template"]["spec"]
    ids = {pod["securityContext"].get(name) for name in ("runAsUser", "runAsGroup")}
    assert ids == {user or None}
    (out,) = pod["containers"]
    assert settings.parse(out["args"], {}).settings.user_id == (user or None)


def test_names_of_digits_stay_texts() -> None:
    numbers = ("--set-string=imagePullSecrets[0]=1", "--set-string=watchNamespaces[0]=2")
    flags = (*numbers, "--kube-version=1.35.0", "--namespace=7")
    objects = [o for o in yaml.safe_load_all(helm("template", RELEASE, OPERATOR, *flags)) if o]
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "1"}]
    namespaces = {each["metadata"].get("namespace", "7") for each in objects}
    assert namespaces == {"2", "7"}


def test_helm_accepts_no_name_that_the_operator_refuses() -> None:
    """The operator would end with an error again and again."""
    known = json.loads((OPERATOR / "values.schema.json").read_text())["definitions"]
    assert known["name"]["pattern"] == OBJECT_NAME_PATTERN
    assert known["optionalName"]["pattern"] == f"^({OBJECT_NAME_PATTERN[1:-1]})?$"
    assert known["namespace"]["pattern"] == DNS_LABEL_PATTERN
    assert known["quantity"]["pattern"] == QUANTITY_PATTERN
    workspace = json.loads((OPERATOR / "values.schema.json").read_text())["properties"]["workspace"]
    assert workspace["properties"]["artifactRetention"]["pattern"] == RETENTION_PATTERN
    toleration = known["toleration"]["properties"]
    assert toleration.keys() == {each.alias for each in Toleration.model_fields.values()}
    key, value = (
        known["nodeSelector"]["propertyNames"],
        known["nodeSelector"]["additionalProperties"],
    )
    assert key["pattern"] == toleration["key"]["pattern"] == LABEL_KEY_PATTERN
    assert value["pattern"] == toleration["value"]["pattern"] == LABEL_VALUE_PATTERN
    assert known["env"]["items"]["properties"]["name"]["pattern"] == ENV_PATTERN
    assert known["priorityClassName"]["allOf"][1] == {"not": {"pattern": SYSTEM_CLASS_PATTERN}}
    assert known["metadataKey"]["pattern"] == LABEL_KEY_PATTERN
    exempt, reserved = known["metadataKey"]["anyOf"]
    assert exempt["pattern"] == "^" + re.escape(AUTOSCALER_PREFIX).replace(r"\-", "-")
    assert reserved == {"not": {"pattern": RESERVED_KEY_PATTERN}}
    labels = known["podMetadata"]["properties"]["labels"]["additionalProperties"]
    assert labels["pattern"] == LABEL_VALUE_PATTERN


def test_the_values_schema_has_every_option_of_pods_without_devices() -> None:
    schema = json.loads((OPERATOR / "values.schema.json").read_text())
    known = schema["properties"]["cpuPods"]["properties"].keys()
    assert known == {each.alias for each in CpuPods.model_fields.values()}


def test_the_lease_is_in_a_watched_namespace() -> None:
    options = settings.parse(container("watchNamespaces={team-a,team-b}")["args"], {})
    assert options.namespaces == ("team-a", "team-b")
    assert options.lease_namespace == "team-a"


def test_images_without_a_tag_have_the_charts_version() -> None:
    version = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())["appVersion"]
    assert container()["image"].endswith(f"/finetune-operator:{version}")


def test_both_charts_have_the_same_version() -> None:
    texts = [(chart / "Chart.yaml").read_text() for chart in (OPERATOR, CRDS)]
    first, second = (yaml.safe_load(text) for text in texts)
    assert (first["version"], first["appVersion"]) == (second["version"], second["appVersion"])


def test_a_restricted_namespace_admits_the_operators_pod(api: Api, namespace: str) -> None:
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    api.patch("Namespace", "", namespace, restricted)
    spec = one(rendered("replicas=2"), "Deployment")["spec"]["template"]["spec"]
    del spec["serviceAccountName"]
    metadata = {"name": "operator", "namespace": namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    assert api.create(pod)["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_only_several_replicas_have_a_disruption_budget() -> None:
    kinds = [{each["kind"] for each in rendered(f"replicas={n}")} for n in (1, 2)]
    assert ["PodDisruptionBudget" in each for each in kinds] == [False, True]


def test_the_service_monitor_is_rendered_only_when_enabled() -> None:
    assert "ServiceMonitor" not in template()
    monitor = one(rendered("metrics.serviceMonitor.enabled=true"), "ServiceMonitor")
    service = one(rendered(), "Service")
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )


def test_the_model_admits_every_profile() -> None:
    found = profiles()
    assert found.keys() == PROFILES
    for spec in found.values():
        AcceleratorProfileSpec.model_validate(spec)


def test_the_values_name_the_default_profile() -> None:
    assert [n for n, spec in profiles("profiles.default=cpu").items() if spec["default"]] == ["cpu"]
    assert not [n for n, spec in profiles().items() if spec["default"]]


def test_values_can_remove_a_profile_and_add_another() -> None:
    names = profiles("profiles.pools.cpu=null", "profiles.pools.mi300.memoryPerDevice=190Gi").keys()
    assert names == PROFILES - {"cpu"} | {"mi300"}


def test_the_values_schema_has_every_field_of_a_profile() -> None:
    schema = json.loads((OPERATOR / "values.schema.json").read_text())
    known = schema["definitions"]["profile"]["properties"].keys()
    fields = {each.alias for each in AcceleratorProfileSpec.model_fields.values()}
    assert known == fields - {"default"}


def old_crds(folder: Path) -> Path:
    """The chart of the CRDs as an older version had it: without a field and a column."""
    chart = Path(shutil.copytree(CRDS, folder / "old"))
    path = chart / "templates" / "finetune.dev_finetunejobs.yaml"
    crd = yaml.safe_load(path.read_text())
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["maxRestarts"]
    rules = schema["x-kubernetes-validations"]
    about = [rule for rule in rules if rule.get("fieldPath") == ".spec.maxRestarts"]
    schema["x-kubernetes-validations"] = [rule for rule in rules if rule not in about]
    version["additionalPrinterColumns"].pop()
    path.write_text(yaml.safe_dump(crd))
    return chart


def test_profiles_are_refused_under_crds_that_would_drop_a_field(tmp_path: Path) -> None:
    chart = old_crds(tmp_path)
    path = chart / "templates" / "finetune.dev_acceleratorprofiles.yaml"
    crd = yaml.safe_load(path.read_text())
    (version,) = crd["spec"]["versions"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["sharedMemory"]
    path.write_text(yaml.safe_dump(crd))
    with started(tmp_path / "plane") as plane:
        upgrade(plane, "crds", chart, "--wait")
        message = r"profiles\.pools\.\S+\.sharedMemory: .* upgrade the chart finetune-operator-crds"
        with pytest.raises(ClusterError, match=message):
            upgrade(plane, RELEASE, OPERATOR)
        upgrade(plane, "crds", CRDS, "--wait")
        upgrade(plane, RELEASE, OPERATOR)
        profile = Api(plane.kubeconfig).get("AcceleratorProfile", "", "h100-80gb")
        assert profile["spec"]["sharedMemory"] == "64Gi"


def test_a_release_without_profiles_needs_no_permission_for_crds(
    control_plane: ControlPlane,
) -> None:
    """As that of a team, where the platform team has installed the CRDs and the profiles."""
    groups = ["", "apps", "rbac.authorization.k8s.io", "finetune.dev", "policy"]
    rule = {"apiGroups": groups, "resources": ["*"], "verbs": ["*"]}
    role = {"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": "team"}}
    binding = {
        "apiVersion": RBAC,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "team"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "team"},
        "subjects": [{"kind": "User", "name": "team"}],
    }
    manifests = yaml.safe_dump_all([{**role, "rules": [rule]}, binding])
    control_plane.kubectl("apply", "-f", "-", stdin=manifests)
    flags = ("--kube-as-user=team", "--dry-run=server", "--set=profiles.create=false")
    assert "kind: Deployment" in upgrade(control_plane, "second", OPERATOR, *flags)


WISH: Manifest = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "wish", "namespace": "default"},
    "spec": {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "s3://bucket/rows.jsonl"}]},
    },
}


def test_install_upgrade_and_uninstall_keep_every_job(tmp_path: Path) -> None:
    with started(tmp_path / "plane") as plane:
        with pytest.raises(ClusterError, match="install the chart finetune-operator-crds"):
            upgrade(plane, RELEASE, OPERATOR)

        upgrade(plane, "crds", old_crds(tmp_path), "--wait")
        upgrade(plane, RELEASE, OPERATOR, "--set=profiles.default=cpu")
        api = Api(plane.kubeconfig)
        made = api.create(WISH)
        uid = made["metadata"]["uid"]
        assert "maxRestarts" not in made["spec"]

        upgrade(plane, "crds", CRDS, "--wait")
        notes = upgrade(plane, RELEASE, OPERATOR, "--set=profiles.default=l4-24gb")
        assert notes.index("NEW-CRDS-CHART") < notes.index("NEW-CHART")
        # As the notes recommend, it keeps the values that were set.
        assert "--reset-then-reuse-values" in notes
        upgrade(plane, RELEASE, OPERATOR, "--reset-then-reuse-values", "--set=replicas=2")
        assert api.get("FineTuneJob", "default", "wish")["spec"]["maxRestarts"] == 3
        pools = api.list("AcceleratorProfile")
        default = [each["metadata"]["name"] for each in pools if each["spec"]["default"]]
        assert default == ["l4-24gb"]

        for release in (RELEASE, "crds"):
            where = ("--kubeconfig", plane.kubeconfig, "--namespace", "finetune-system")
            helm("uninstall", release, *where)
        assert api.get("FineTuneJob", "default", "wish")["metadata"]["uid"] == uid
        upgrade(plane, "crds", CRDS)
