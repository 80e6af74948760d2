"""The chart's NetworkPolicies, applied to the pods that the operator really creates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_api.protocol import RENDEZVOUS_PORT, TELEMETRY_PORT
from finetune_operator.decision import MANAGED_BY_LABEL, MANAGER
from finetune_operator.endpoints.observe import parse_artifact
from finetune_operator.resources.deployment import build_deployment
from finetune_operator.resources.inferenceservice import build_inference_service
from finetune_operator.resources.janitor import build_janitor_job
from finetune_operator.resources.vllm import PORT, Artifact, ServedRevision

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.charts import SYSTEM, dry_run, one, rendered, template
from tests.api.client import Manifest
from tests.api.kserve.manager import pod_labels
from tests.api.network import Outside, Pod, applies, connects
from tests.unit.endpoints import world as endpoints
from tests.unit.jobs import world as jobs

TEAM = jobs.NAMESPACE
STAGES = ("prepare", "train", "evaluate", "export")
ON = ("networkPolicy.enabled=true", f"watchNamespaces={{{TEAM}}}")
HUGGING_FACE, METADATA = Outside("18.155.68.100"), Outside("169.254.169.254")
API_SERVER, NODE = Outside("10.0.0.1"), Outside("10.3.0.7")
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
PROMETHEUS = Pod("monitoring", {"app": "prometheus"})
METADATA_SERVICES = (
    "169.254.169.254",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "168.63.129.16",
)
"""Of EC2, Google Cloud and others, EC2 and Google Cloud with IPv6, Alibaba Cloud, Azure."""
GATEWAY = Pod("ingress", {"app": "gateway"})
NEIGHBOUR = Pod(TEAM, {"app": "notebook"})


def policies(*values: str, **names: str) -> list[Manifest]:
    return [each for each in rendered(*ON, *values, **names) if each["kind"] == "NetworkPolicy"]


def operator(*values: str, **names: str) -> Pod:
    template = one(rendered(*values, **names), "Deployment")["spec"]["template"]
    return Pod(SYSTEM, template["metadata"]["labels"])


def labels_of(template: Manifest) -> Mapping[str, str]:
    found: Mapping[str, str] = template["metadata"]["labels"]
    return found


def stage_pod(stage: str) -> Pod:
    world = jobs.World(jobs.job_manifest())
    world.run_until(stage)
    job = world.get("Job", TEAM, f"glossary-{stage}-1")
    assert job is not None
    return Pod(TEAM, labels_of(job["spec"]["template"]))


def janitor_pod() -> Pod:
    job = build_janitor_job(TEAM, "uid", [], frozenset(), jobs.START, jobs.SETTINGS)
    return Pod(TEAM, labels_of(job["spec"]["template"]))


def served() -> ServedRevision:
    artifact, pool = parse_artifact(**endpoints.artifact("a")), endpoints.profile()
    assert isinstance(artifact, Artifact)
    spec = {"name": pool["metadata"]["name"], "spec": pool["spec"]}
    profile = AcceleratorProfile.model_validate(spec)
    endpoint = endpoints.endpoint()
    return ServedRevision(endpoint, 1, "key", artifact, profile, 1, 1, jobs.SETTINGS)


def build_pods() -> dict[str, Pod]:
    """Every kind of pod that the operator creates in a namespace."""
    deployment = build_deployment(served())
    service = build_inference_service(served())
    return {
        **{stage: stage_pod(stage) for stage in STAGES},
        "janitor": janitor_pod(),
        "vllm": Pod(TEAM, labels_of(deployment["spec"]["template"])),
        "kserve": Pod(TEAM, pod_labels(service)),
    }


PODS = build_pods()
SERVING = ("vllm", "kserve")


def test_each_policy_selects_exactly_the_intended_pods() -> None:
    everything = {**PODS, "operator": operator(*ON), "neighbour": NEIGHBOUR}
    found = {
        policy["metadata"]["name"]: {n for n, pod in everything.items() if applies(policy, pod)}
        for policy in policies()
    }
    assert found == {
        "finetune-operator": {"operator"},
        "finetune-operator-default": set(PODS),
        "finetune-operator-stages": set(STAGES),
        "finetune-operator-prepare": {"prepare"},
        "finetune-operator-train": {"train"},
        "finetune-operator-serving": set(SERVING),
    }


def test_pods_of_another_namespace_are_not_selected() -> None:
    other = [replace(pod, namespace="team-b") for pod in PODS.values()]
    assert not [each for each in policies() for pod in other if applies(each, pod)]


@pytest.mark.parametrize("release", ["finetune-operator", "my.release"])
def test_the_operator_reaches_what_it_reads(release: str) -> None:
    made, leader = policies(release=release), operator(*ON, release=release)
    assert connects(made, leader, API_SERVER, 443)
    assert connects(made, leader, API_SERVER, 6443)
    assert connects(made, leader, DNS, 53, "UDP")
    for stage in STAGES:
        assert connects(made, leader, PODS[stage], TELEMETRY_PORT)
        assert not connects(made, leader, PODS[stage], RENDEZVOUS_PORT)
    for server in SERVING:
        assert connects(made, leader, PODS[server], PORT)
        assert not connects(made, leader, PODS[server], 22)
    assert not connects(made, leader, NEIGHBOUR, PORT)
    assert not connects(made, leader, Outside("1.1.1.1"), 80)


def test_every_pod_may_read_the_operators_metrics_unless_the_values_name_some() -> None:
    leader = operator(*ON)
    assert connects(policies(), PROMETHEUS, leader, 8080)
    assert not connects(policies(), PROMETHEUS, leader, 9400)
    label = r"namespaceSelector.matchLabels.kubernetes\.io/metadata\.name"
    made = policies(f"networkPolicy.metricsFrom[0].{label}=monitoring", "healthPort=9000")
    assert connects(made, PROMETHEUS, leader, 9000)
    assert not connects(made, NEIGHBOUR, leader, 9000)


def test_only_prepare_reaches_the_internet_and_never_the_metadata_of_a_cloud() -> None:
    for name, pod in PODS.items():
        assert connects(policies(), pod, HUGGING_FACE, 443) == (name == "prepare"), name
        for address in METADATA_SERVICES:
            assert not connects(policies(), pod, Outside(address), 80), (name, address)


def test_the_operator_polls_training_pods_on_the_network_of_nodes_that_the_values_name() -> None:
    leader, nodes = operator(*ON), "networkPolicy.nodes[0].ipBlock.cidr=10.3.0.0/16"
    assert not connects(policies(), leader, NODE, TELEMETRY_PORT)
    assert connects(policies(nodes), leader, NODE, TELEMETRY_PORT)
    assert not connects(policies(nodes), leader, NODE, 10250)
    assert not connects(policies(nodes), leader, Outside("10.4.0.7"), TELEMETRY_PORT)


def test_prepare_reaches_what_the_values_allow_and_not_what_they_block() -> None:
    blocked = "networkPolicy.prepare.blockedCIDRs={10.0.0.0/8,fd00::/8}"
    agent = "networkPolicy.prepare.to[0].ipBlock.cidr=169.254.170.23/32"
    made, prepare = policies(blocked, agent), PODS["prepare"]
    assert connects(made, prepare, HUGGING_FACE, 443)
    assert connects(made, prepare, Outside("2606:4700::1111"), 443)
    assert not connects(made, prepare, Outside("10.9.9.9"), 443)
    assert not connects(made, prepare, Outside("fd12::1"), 443)
    assert connects(made, prepare, Outside("169.254.170.23"), 80)
    assert not connects(made, prepare, METADATA, 80)
    closed = policies(agent, "networkPolicy.prepare.internet=false")
    assert connects(closed, prepare, Outside("169.254.170.23"), 80)
    assert not connects(closed, prepare, HUGGING_FACE, 443)
    assert not connects(policies("networkPolicy.prepare.internet=false"), prepare, METADATA, 80)


def test_the_pods_of_a_gang_reach_each_other_on_every_port() -> None:
    made, rank = policies(), PODS["train"]
    for port in (RENDEZVOUS_PORT, 41234):
        assert connects(made, rank, rank, port)
        assert not connects(made, NEIGHBOUR, rank, port)
        assert not connects(made, PODS["prepare"], rank, port)
        assert not connects(made, rank, replace(rank, namespace="team-b"), port)


def test_training_reaches_a_tracker_that_the_values_name() -> None:
    tracker = "networkPolicy.train.to[0].podSelector.matchLabels.app=notebook"
    assert not connects(policies(), PODS["train"], NEIGHBOUR, 5000)
    assert connects(policies(tracker), PODS["train"], NEIGHBOUR, 5000)
    assert not connects(policies(tracker), PODS["evaluate"], NEIGHBOUR, 5000)


def test_only_the_operator_reads_the_telemetry_of_stages_unless_the_values_name_others() -> None:
    label = r"namespaceSelector.matchLabels.kubernetes\.io/metadata\.name"
    opened = policies(f"networkPolicy.telemetryFrom[0].{label}=monitoring")
    for stage in STAGES:
        pod = PODS[stage]
        assert not connects(policies(), NEIGHBOUR, pod, TELEMETRY_PORT)
        impostor = replace(operator(*ON), namespace=TEAM)
        assert not connects(policies(), impostor, pod, TELEMETRY_PORT)
        assert not connects(policies(), PROMETHEUS, pod, TELEMETRY_PORT)
        assert connects(opened, PROMETHEUS, pod, TELEMETRY_PORT)


@pytest.mark.parametrize("name", ["evaluate", "export", *SERVING])
def test_a_pod_that_downloads_nothing_reaches_nothing_but_dns(name: str) -> None:
    made = policies()
    assert connects(made, PODS[name], DNS, 53, "UDP")
    assert connects(made, PODS[name], Outside("169.254.20.10"), 53, "TCP")
    for target in (DNS, HUGGING_FACE, METADATA, API_SERVER, NEIGHBOUR, PODS["train"]):
        assert not connects(made, PODS[name], target, 443)


def test_the_janitor_reaches_nothing() -> None:
    for target in (DNS, HUGGING_FACE, API_SERVER):
        assert not connects(policies(), PODS["janitor"], target, 53, "UDP")


@pytest.mark.parametrize("name", SERVING)
def test_every_pod_may_call_a_served_model_unless_the_values_name_some(name: str) -> None:
    assert connects(policies(), GATEWAY, PODS[name], PORT)
    assert not connects(policies(), HUGGING_FACE, PODS[name], PORT)
    closed = policies("networkPolicy.serving.from=[]")
    assert not connects(closed, GATEWAY, PODS[name], PORT)
    assert connects(closed, operator(*ON), PODS[name], PORT)


@pytest.mark.parametrize(
    "empty",
    ["dns.to", "apiServer.to", "metricsFrom", "serving.from", "nodes", "prepare.to", "train.to"],
)
def test_a_list_without_peers_never_allows_everything(empty: str) -> None:
    for policy in policies(f"networkPolicy.{empty}=[]", "networkPolicy.prepare.internet=false"):
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction) or ():
                assert rule[peers], policy["metadata"]["name"]


def test_the_labels_and_ports_are_those_of_the_operator() -> None:
    text = template(*ON)
    assert text.count(f"{MANAGED_BY_LABEL}: {MANAGER}") >= 6
    ports = {
        port["port"]
        for policy in policies()
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ()))
        for port in rule.get("ports", ())
    }
    assert ports == {53, 443, 6443, TELEMETRY_PORT, PORT}


def test_without_the_value_there_are_no_policies() -> None:
    assert "NetworkPolicy" not in template("watchNamespaces={team-a}")


def test_when_all_namespaces_are_watched_only_the_operator_has_a_policy() -> None:
    objects = rendered("networkPolicy.enabled=true")
    made = one(objects, "NetworkPolicy")
    other = replace(PODS["train"], namespace="team-b")
    assert connects([made], operator("networkPolicy.enabled=true"), other, TELEMETRY_PORT)


def test_the_api_server_accepts_the_policies(control_plane: ControlPlane) -> None:
    dry_run(control_plane, policies())
    closed = ("dns.to=[]", "apiServer.to=[]", "metricsFrom=[]", "serving.from=[]")
    off = (*(f"networkPolicy.{each}" for each in closed), "networkPolicy.prepare.internet=false")
    dry_run(control_plane, policies(*off))
    dry_run(
        control_plane, policies("networkPolicy.prepare.blockedCIDRs={10.0.0.0/8,fd00::/8,::1/128}")
    )


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("enabled=yes", "/networkPolicy/enabled"),
        ("prepare.blockedCIDRs={10.0.0.0}", "/networkPolicy/prepare/blockedCIDRs/0"),
        ("prepare.blockedCIDRs={0.0.0.0/0}", "/networkPolicy/prepare/blockedCIDRs/0"),
        ("prepare.to[0].cidr=10.0.0.0/8", "/networkPolicy/prepare/to/0"),
        ("prepare.to[0].ipBlock.cidr=10.0.0.300/8", "/networkPolicy/prepare/to/0/ipBlock/cidr"),
        ("serving.from[0].podSelector.app=x", "/networkPolicy/serving/from/0/podSelector"),
        ("dns.ports={0}", "/networkPolicy/dns/ports/0"),
        ("egress=x", "/networkPolicy"),
    ],
)
def test_helm_refuses_an_invalid_policy_with_its_path(value: str, path: str) -> None:
    with pytest.raises(ClusterError) as refusal:
        template(f"networkPolicy.{value}")
    assert path in str(refusal.value)
