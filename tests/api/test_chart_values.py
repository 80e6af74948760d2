"""The values of the operator's chart: flags of the operator, its pod, names and labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from finetune_api.acceleratorprofile import CpuPods
from finetune_api.base import LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN
from finetune_api.pod_options import PodMetadata
from finetune_operator import settings

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.charts import OPERATOR, SYSTEM, dry_run, one, rendered, template
from tests.api.client import Manifest

FLAGS = {
    "--trainer-image": "trainer.image.tag=other",
    "--serving-image": "serving.image.tag=other",
    "--image-pull-policy": "imagePullPolicy=Never",
    "--image-pull-secret": "imagePullSecrets={registry}",
    "--trainer-service-account": "trainer.serviceAccount=stages",
    "--allowed-service-account": "trainer.serviceAccounts[0]=s3-reader",
    "--workspace-claim": "workspace.claimName=other",
    "--workspace-size": "workspace.size=7Gi",
    "--workspace-storage-class": "workspace.storageClass=nfs",
    "--model-retention-days": "workspace.modelRetentionDays=7",
    "--artifact-retention": "workspace.artifactRetention=720h",
    "--default-ttl-seconds-after-finished": "defaultTtlSecondsAfterFinished=0",
    "--progress-interval": "progressIntervalSeconds=7",
    "--scale-up-seconds": "scaleUpSeconds=7",
    "--user-id": "userId=7",
    "--architecture": "architecture=arm64",
    "--cpu-pods": "cpuPods.nodeSelector.pool=cpu",
    "--lost-node-seconds": "lostNodeSeconds=7",
    "--namespace": "watchNamespaces={team}",
    "--lease-namespace": "watchNamespaces={team}",
    "--lease-name": "fullnameOverride=other",
    "--workers": "workers=7",
    "--log-format": "logFormat=text",
    "--log-level": "logLevel=debug",
    "--health-port": "healthPort=9000",
}
"""A value that changes the flag."""
WITHOUT_VALUE = {"--kubeconfig": "the pod uses its ServiceAccount"}


BUDGET = "PodDisruptionBudget"


def pod(*values: str) -> dict[str, Any]:
    """The template of the operator's pod."""
    found: dict[str, Any] = one(rendered(*values), "Deployment")["spec"]["template"]
    return found


def container(*values: str) -> dict[str, Any]:
    (found,) = pod(*values)["spec"]["containers"]
    return dict(found)


def given(flag: str, *values: str) -> list[str]:
    return [each for each in container(*values)["args"] if each.startswith(f"{flag}=")]


def test_every_flag_of_the_operator_has_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse(["--help"], {})
    flags = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert flags == FLAGS.keys() | WITHOUT_VALUE.keys()


@pytest.mark.parametrize(("flag", "value"), FLAGS.items())
def test_the_value_changes_the_flag(flag: str, value: str) -> None:
    assert given(flag, value) != given(flag)
    settings.parse(container(value)["args"], {})


def test_the_defaults_of_the_chart_are_those_of_the_flags() -> None:
    def defaults(arguments: list[str]) -> dict[str, Any]:
        options = settings.parse(arguments, {})
        found = vars(options) | vars(options.settings)
        differ = ("settings", "identity", "trainer_image", "serving_image", "cpu_pods")
        return {name: value for name, value in found.items() if name not in differ}

    process = ["--trainer-image=t", "--serving-image=s", f"--lease-namespace={SYSTEM}"]
    assert defaults(container()["args"]) == defaults(process)


def test_the_operator_runs_on_nodes_for_which_its_image_is_built() -> None:
    def selector(*values: str) -> Any:
        return pod(*values)["spec"].get("nodeSelector")

    assert selector() == {"kubernetes.io/arch": "amd64"}
    assert selector("architecture=arm64", "nodeSelector.pool=system") == {
        "kubernetes.io/arch": "arm64",
        "pool": "system",
    }
    own = r"nodeSelector.kubernetes\.io/arch=arm64"
    assert selector(own) == {"kubernetes.io/arch": "arm64"}
    assert selector("architecture=") is None


def test_extra_variables_reach_the_container() -> None:
    made = container(
        "extraEnv[0].name=HTTPS_PROXY",
        "extraEnv[0].value=http://proxy:3128",
        "extraEnv[1].name=NODE",
        "extraEnv[1].valueFrom.fieldRef.fieldPath=spec.nodeName",
    )
    assert [each["name"] for each in made["env"]] == ["HTTPS_PROXY", "NODE"]
    assert "env" not in container()


def expand(argument: str, variables: Mapping[str, str]) -> str:
    """What the kubelet makes of an argument: $(NAME) is the variable, and $$ a dollar sign."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[1] is None else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replacement, argument)


def test_dollar_signs_reach_the_pods_without_devices() -> None:
    password = "a$$b$(NODE)$$(NODE)$c"
    made = container(
        "extraEnv[0].name=NODE",
        "extraEnv[0].value=node-1",
        "cpuPods.env[0].name=HTTPS_PROXY",
        f"cpuPods.env[0].value=http://me:{password}@proxy:3128",
        f"cpuPods.podMetadata.annotations.note={password}",
    )
    variables = {each["name"]: each["value"] for each in made["env"]}
    cpu_pods = settings.parse(
        [expand(each, variables) for each in made["args"]], {}
    ).settings.cpu_pods
    assert [each.value for each in cpu_pods.env] == [f"http://me:{password}@proxy:3128"]
    assert cpu_pods.pod_metadata == PodMetadata(annotations={"note": password})


def test_pods_without_devices_have_no_class_unless_the_values_name_one() -> None:
    cpu_pods = settings.parse(container()["args"], {}).settings.cpu_pods
    assert (cpu_pods.runtime_class_name, cpu_pods.priority_class_name) == (None, None)
    assert cpu_pods.max_memory is None
    defaults = yaml.safe_load((OPERATOR / "values.yaml").read_text())["cpuPods"]
    assert defaults.keys() == {each.alias for each in CpuPods.model_fields.values()}


def test_the_port_of_metrics_and_probes_is_a_value() -> None:
    objects = rendered("healthPort=9000")
    assert container("healthPort=9000")["ports"] == [{"name": "http", "containerPort": 9000}]
    assert one(objects, "Service")["spec"]["ports"][0]["port"] == 9000


def test_the_security_contexts_are_values() -> None:
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    ids = {"runAsUser": 65532, "runAsGroup": 65532}
    assert pod()["spec"]["securityContext"] == restricted | ids
    other = pod("podSecurityContext.runAsUser=7", "podSecurityContext.fsGroup=8")["spec"]
    wanted = restricted | ids | {"runAsUser": 7, "fsGroup": 8}
    assert other["securityContext"] == wanted
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container("securityContext.runAsUser=7")["securityContext"]["runAsUser"] == 7


def test_a_spread_constraint_counts_the_pods_of_this_release() -> None:
    spread = "topologySpreadConstraints[0]"
    zone = "topology.kubernetes.io/zone"
    values = [f"{spread}.maxSkew=1", f"{spread}.topologyKey={zone}"]
    values.append(f"{spread}.whenUnsatisfiable=ScheduleAnyway")
    made = one(rendered(*values), "Deployment")["spec"]
    (constraint,) = made["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"] == made["selector"]
    own = pod(*values, f"{spread}.labelSelector.matchLabels.a=b")["spec"]
    assert own["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]["a"] == "b"


def test_the_priority_class_is_a_value() -> None:
    assert pod("priorityClassName=system-cluster-critical")["spec"]["priorityClassName"]
    assert "priorityClassName" not in pod()["spec"]


def test_the_disruption_budget_is_a_value() -> None:
    budget = one(rendered("replicas=3", "podDisruptionBudget.maxUnavailable=50%"), BUDGET)
    assert budget["spec"]["maxUnavailable"] == "50%"
    assert one(rendered("replicas=3"), BUDGET)["spec"]["maxUnavailable"] == 1
    kinds = {each["kind"] for each in rendered("replicas=3", "podDisruptionBudget.enabled=false")}
    assert BUDGET not in kinds


def subjects(objects: list[Manifest]) -> set[str]:
    bindings = [each for each in objects if each["kind"].endswith("RoleBinding")]
    return {subject["name"] for each in bindings for subject in each["subjects"]}


def test_the_service_account_has_a_name_and_annotations() -> None:
    role = r"serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::1:role/any"
    objects = rendered("serviceAccount.name=my.account", role)
    account = one(objects, "ServiceAccount")["metadata"]
    assert account["name"] == "my.account"
    assert account["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/any"}
    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "my.account"
    assert subjects(objects) == {"my.account"}


def test_an_existing_service_account_gets_the_permissions() -> None:
    objects = rendered("serviceAccount.create=false", "serviceAccount.name=theirs")
    assert "ServiceAccount" not in {each["kind"] for each in objects}
    assert subjects(objects) == {"theirs"}
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"


def selectors(value: Any) -> Iterator[Any]:
    """Every selector of labels in a manifest."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("selector", "labelSelector", "podSelector", "matchLabels"):
                yield inner
            else:
                yield from selectors(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from selectors(inner)


EVERYTHING = (
    "replicas=2",
    "metrics.serviceMonitor.enabled=true",
    "watchNamespaces={team-a,team-b}",
    "commonLabels.cost-center=ml",
)


def test_every_object_has_the_common_labels_and_no_selector_has() -> None:
    objects = rendered(*EVERYTHING, "podLabels.team=platform")
    assert len({each["kind"] for each in objects}) >= 9
    for each in objects:
        assert each["metadata"]["labels"]["cost-center"] == "ml", each["kind"]
        assert not [s for s in selectors(each) if "cost-center" in str(s) or "team" in s]
    labels = pod(*EVERYTHING, "podLabels.team=platform", "podLabels.cost-center=gpu")["metadata"]
    assert labels["labels"]["team"] == "platform"
    assert labels["labels"]["cost-center"] == "gpu"


@pytest.mark.parametrize(
    "override",
    [
        "fullnameOverride=my.operator",
        "fullnameOverride=7b",
        "fullnameOverride=" + "x." * 100 + "x",
        "fullnameOverride=" + "y" * 52 + "--z",
        "nameOverride=tuner",
        "nameOverride=my.tuner",
        "nameOverride=" + "9" * 63,
    ],
)
def test_an_override_gives_valid_names(override: str) -> None:
    objects = rendered(override, *EVERYTHING)
    for each in objects:
        if each["kind"] != "AcceleratorProfile":
            name = each["metadata"]["name"]
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name), name
    spec = one(objects, "Deployment")["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    settings.parse(spec["template"]["spec"]["containers"][0]["args"], {})


def test_an_override_replaces_the_name() -> None:
    assert one(rendered("fullnameOverride=tuner"), "Deployment")["metadata"]["name"] == "tuner"
    named = one(rendered("nameOverride=tuner", release="ml"), "Deployment")
    assert named["metadata"]["name"] == "ml-tuner"
    assert named["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "tuner"


def test_a_second_release_can_leave_the_profiles_to_the_first() -> None:
    kinds = {each["kind"] for each in rendered("profiles.create=false")}
    assert "AcceleratorProfile" not in kinds


def unknown_values(values: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Paths of the values that the schema does not name."""
    for key, inner in values.items():
        known = schema["properties"].get(key)
        if known is None:
            yield f"{where}/{key}"
        elif "properties" in known:
            yield from unknown_values(inner, known, f"{where}/{key}")


def test_the_schema_names_every_value_and_nothing_else() -> None:
    schema = json.loads((OPERATOR / "values.schema.json").read_text())
    values = yaml.safe_load((OPERATOR / "values.yaml").read_text())
    assert list(unknown_values(values, schema)) == []
    assert schema["properties"].keys() - values.keys() == {"global"}


def test_keys_and_values_of_labels_are_checked_as_in_the_api() -> None:
    known = json.loads((OPERATOR / "values.schema.json").read_text())["definitions"]
    assert known["labels"]["patternProperties"][LABEL_KEY_PATTERN]["pattern"] == LABEL_VALUE_PATTERN
    assert LABEL_KEY_PATTERN in known["annotations"]["patternProperties"]
    toleration = known["podToleration"]["properties"]
    assert toleration["key"]["pattern"] == LABEL_KEY_PATTERN
    assert toleration["value"]["pattern"] == LABEL_VALUE_PATTERN


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("nameOverride=a_b", "/nameOverride"),
        ("nameOverride=" + "a" * 64, "/nameOverride"),
        ("fullnameOverride=A", "/fullnameOverride"),
        (r"commonLabels.app\.kubernetes\.io/name=x", "/commonLabels"),
        (r"podLabels.finetune\.dev/stage=x", "/podLabels"),
        ("podLabels.team=a b", "/podLabels/team"),
        ("logLevel=trace", "/logLevel"),
        ("progressIntervalSeconds=0", "/progressIntervalSeconds"),
        ("workers=0", "/workers"),
        ("healthPort=80", "/healthPort"),
        ("podDisruptionBudget.maxUnavailable=half", "/podDisruptionBudget/maxUnavailable"),
        ("podDisruptionBudget.maxUnavailable=0", "/podDisruptionBudget/maxUnavailable"),
        ("podDisruptionBudget.maxUnavailable=0%", "/podDisruptionBudget/maxUnavailable"),
        ("serviceAccount.create=false", "/serviceAccount/name"),
        ("serviceAccount.name=a b", "/serviceAccount/name"),
        ("serviceAccount.annotations.a=1", "/serviceAccount/annotations/a"),
        ("extraEnv[0].value=x", "/extraEnv/0"),
        ("extraEnv[0].name=1x", "/extraEnv/0/name"),
        ("podSecurityContext.runAsUsr=1", "/podSecurityContext"),
        ("podSecurityContext.seccompProfile.type=None", "/podSecurityContext/seccompProfile/type"),
        ("securityContext.capabilities.drop=ALL", "/securityContext/capabilities/drop"),
        ("topologySpreadConstraints[0].maxSkew=0", "/topologySpreadConstraints/0"),
        ("priorityClassName=a b", "/priorityClassName"),
        ("tolerations[0].operator=Any", "/tolerations/0/operator"),
        ("affinity.node=x", "/affinity"),
        ("resources.limits.cpu=much", "/resources/limits/cpu"),
        ("profiles.create=false,profiles.default=cpu", 'profiles.default is "cpu"'),
        ("replica=2", "replica"),
        ("profiles.default=none-such", 'profiles.default is "none-such"'),
        ("workspace.size=big", "/workspace/size"),
        ("workspace.modelRetentionDays=-1", "/workspace/modelRetentionDays"),
        ("workspace.artifactRetention=30d", "/workspace/artifactRetention"),
        ("defaultTtlSecondsAfterFinished=-1", "/defaultTtlSecondsAfterFinished"),
        ("image.digest=sha256:12", "/image/digest"),
        ("image.tag=a b", "/image/tag"),
        ("trainer.image.repository=registry/$(NAME)", "/trainer/image/repository"),
        ("profiles.pools.cpu.memory=6Gi", "/profiles/pools/cpu"),
        ("logFormat=xml", "/logFormat"),
        ("workspace.claimName=a..b", "/workspace/claimName"),
        ("trainer.serviceAccounts={S3}", "/trainer/serviceAccounts/0"),
        ("watchNamespaces={team.a}", "/watchNamespaces/0"),
        ("architecture=x86-64", "/architecture"),
        ("cpuPods.nodeSelector.pool=a b", "/cpuPods/nodeSelector/pool"),
        ("cpuPods.tolerations[0].operator=Any", "/cpuPods/tolerations/0/operator"),
        ("cpuPods.limits.gpu=1", "/cpuPods/limits"),
        ("cpuPods.maxMemory=much", "/cpuPods/maxMemory"),
        ("cpuPods.priorityClassName=system-node-critical", "/cpuPods/priorityClassName"),
        ("cpuPods.podMetadata.labels.app=x", "invalid propertyName 'app'"),
        (
            r"cpuPods.podMetadata.labels.finetune\.dev/stage=x",
            "invalid propertyName 'finetune.dev/stage'",
        ),
        ("cpuPods.env[0].name=LD_PRELOAD,cpuPods.env[0].value=x", "/cpuPods/env/0/name"),
        ("profiles.pools.cpu.limitsPerDevice.memory=much", "/limitsPerDevice/memory"),
        ("profiles.pools.cpu.limitsPerDevice.memory=-1", "/limitsPerDevice/memory"),
    ],
)
def test_helm_refuses_an_invalid_value_with_its_path(value: str, path: str) -> None:
    with pytest.raises(ClusterError) as refusal:
        template(value)
    assert path in str(refusal.value)


def test_the_api_server_accepts_a_release_with_every_value(control_plane: ControlPlane) -> None:
    spread = "topologySpreadConstraints[0]"
    values = [
        "replicas=2",
        "watchNamespaces={team-a,team-b}",
        "commonLabels.cost-center=ml",
        "podLabels.team=platform",
        "fullnameOverride=my.operator",
        "serviceAccount.annotations.a=b",
        "extraEnv[0].name=HTTPS_PROXY",
        "extraEnv[0].value=http://proxy:3128",
        "podSecurityContext.fsGroup=7",
        "securityContext.runAsUser=7",
        "priorityClassName=system-cluster-critical",
        f"{spread}.maxSkew=1",
        f"{spread}.topologyKey=kubernetes.io/hostname",
        f"{spread}.whenUnsatisfiable=ScheduleAnyway",
        "tolerations[0].operator=Exists",
        "tolerations[0].effect=NoExecute",
        "tolerations[0].tolerationSeconds=60",
        "cpuPods.limits.memory=8589934592",
        "workspace.size=107374182400",
        "profiles.pools.cpu.memoryPerDevice=8589934592",
        "profiles.pools.cpu.cpuPerDevice=1",
    ]
    dry_run(control_plane, rendered(*values, namespace=SYSTEM))
