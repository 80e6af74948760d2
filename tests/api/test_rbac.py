"""The chart's ServiceAccount may do what the operator does, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from finetune_api import API_VERSION
from finetune_api.crd import KINDS
from finetune_operator.decision import Settings
from finetune_operator.engine.crd_check import select_served_schemas
from finetune_operator.names import JANITOR
from finetune_operator.resources.janitor import build_janitor_job, build_ledger, parse_keep_list

from hack.cluster.apiserver import ControlPlane
from tests.api.charts import RELEASE, rendered
from tests.api.client import Api, ApiError, Manifest

VERBS = (
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "bind",
    "escalate",
    "impersonate",
    "*",
)
WATCH = {"list", "watch"}
READ = {"get"} | WATCH
IN_NAMESPACES: dict[tuple[str, str], set[str]] = {
    ("finetune.dev", "finetunejobs"): WATCH | {"delete"},
    ("finetune.dev", "finetunejobs/status"): {"patch"},
    ("finetune.dev", "finetunejobs/finalizers"): {"update"},
    ("finetune.dev", "modelendpoints"): READ | {"create"},
    ("finetune.dev", "modelendpoints/status"): {"patch"},
    ("finetune.dev", "modelendpoints/finalizers"): {"update"},
    ("batch", "jobs"): READ | {"create", "delete"},
    ("", "pods"): WATCH,
    ("", "configmaps"): READ | {"create"},
    ("", "persistentvolumeclaims"): READ | {"create"},
    ("", "services"): READ | {"create", "patch"},
    ("", "events"): {"list", "create", "patch"},
    ("apps", "deployments"): READ | {"create", "patch", "delete"},
    ("serving.kserve.io", "inferenceservices"): READ | {"create", "patch", "delete"},
    ("serving.kserve.io", "servingruntimes"): READ | {"create", "delete"},
}
PROFILE_STATUS = ("finetune.dev", "acceleratorprofiles/status")
EVERYWHERE = {("finetune.dev", "acceleratorprofiles"): WATCH, PROFILE_STATUS: {"patch"}}
# Every authenticated user may query their own permissions.
ASKING = {"authorization.k8s.io", "authentication.k8s.io"}


@dataclass(frozen=True)
class Installed:
    """One installation of the chart, and its ServiceAccount's client."""

    namespace: str
    operator: Api


@pytest.fixture
def installed(control_plane: ControlPlane, api: Api, namespace: str) -> Iterator[Installed]:
    """The chart with all namespaces watched."""
    yield from install(control_plane, api, namespace)


def install(plane: ControlPlane, api: Api, namespace: str, *settings: str) -> Iterator[Installed]:
    """Apply the chart's RBAC, yield a client with the ServiceAccount's token, and delete it."""
    kinds = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    manifests = [m for m in rendered(*settings, namespace=namespace) if m["kind"] in kinds]
    for manifest in manifests:
        api.apply(manifest, manager="helm", force=True)
    token = plane.kubectl("create", "token", RELEASE, "-n", namespace).strip()
    yield Installed(namespace, Api(plane.kubeconfig, token))
    for manifest in manifests:
        metadata = manifest["metadata"]
        api.delete(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


def may(client: Api, verb: str, group: str, resource: str, namespace: str, name: str = "") -> bool:
    """The answer of the API server to `kubectl auth can-i`."""
    plural, _, subresource = resource.partition("/")
    wish = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
    wish |= {"namespace": namespace, "name": name}
    review = {"spec": {"resourceAttributes": wish}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    return bool(client.request("POST", path, review)["status"]["allowed"])


def resources(api: Api) -> Iterator[tuple[str, str]]:
    """Group and name of every resource of the API server, and of KServe's."""
    yield from ((g, r) for g, r in IN_NAMESPACES if g == "serving.kserve.io")
    yield from ((g, r) for g, r in IN_NAMESPACES if r.endswith("/finalizers"))
    yield ("*", "*")
    groups = api.request("GET", "/apis")["groups"]
    versions = ["/api/v1", *("/apis/" + g["preferredVersion"]["groupVersion"] for g in groups)]
    for path in versions:
        group = path.split("/")[2] if path.startswith("/apis") else ""
        if group not in ASKING:
            yield from ((group, each["name"]) for each in api.request("GET", path)["resources"])


@pytest.mark.timeout(300)
def test_the_operator_has_the_listed_permissions_and_no_others(
    api: Api, installed: Installed
) -> None:
    wanted = IN_NAMESPACES | EVERYWHERE | {("coordination.k8s.io", "leases"): {"create"}}
    found: dict[tuple[str, str], set[str]] = {}
    asked = 0
    for group, resource in resources(api):
        for verb in VERBS:
            asked += 1
            if may(installed.operator, verb, group, resource, installed.namespace):
                found.setdefault((group, resource), set()).add(verb)
    assert found == wanted
    assert asked > 800


def test_in_another_namespace_the_operator_has_the_same_permissions_without_the_lease(
    api: Api, installed: Installed
) -> None:
    for (group, resource), verbs in IN_NAMESPACES.items():
        allowed = {v for v in VERBS if may(installed.operator, v, group, resource, "default")}
        assert allowed == verbs, resource
    lease = ("coordination.k8s.io", "leases", "default")
    assert not may(installed.operator, "create", *lease)
    assert not may(installed.operator, "get", *lease, name=RELEASE)


def test_the_operator_renews_its_lease_and_no_other(api: Api, installed: Installed) -> None:
    operator, namespace = installed.operator, installed.namespace
    for name in (RELEASE, "other"):
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"holderIdentity": "me"},
        }
        operator.create(lease)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    mine = operator.get("Lease", namespace, RELEASE)
    operator.request("PUT", f"{path}/{RELEASE}", mine)
    everywhere = "/apis/coordination.k8s.io/v1/leases"
    watched = operator.request("GET", everywhere, fieldSelector=f"metadata.name={RELEASE}")
    seen = [each["metadata"] for each in watched["items"]]
    assert namespace in [each["namespace"] for each in seen]
    assert {each["name"] for each in seen} == {RELEASE}

    refused(operator, "GET", f"{path}/other")
    refused(operator, "GET", path)
    refused(operator, "GET", everywhere)
    refused(operator, "DELETE", f"{path}/{RELEASE}")


def test_the_operator_applies_the_ledgers_of_workspaces_and_no_other_config_map(
    api: Api, installed: Installed
) -> None:
    operator, namespace = installed.operator, installed.namespace
    for kept in (["jobs/1b4e28ba"], []):
        operator.apply(build_ledger(namespace, kept), manager="finetune-operator", force=True)
    found = operator.get("ConfigMap", namespace, JANITOR)
    assert found["data"] == {"kept": ""}
    other = build_ledger(namespace, [])
    other["metadata"]["name"] = "of-a-user"
    with pytest.raises(ApiError) as refusal:
        operator.apply(other, manager="finetune-operator", force=True)
    assert refusal.value.status == 403


def test_the_operator_creates_a_janitor_for_a_thousand_jobs_in_a_restricted_namespace(
    api: Api, installed: Installed
) -> None:
    operator, namespace = installed.operator, installed.namespace
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.patch("Namespace", "", namespace, {"metadata": {"labels": enforce}})
    keep = [f"artifacts/{'x' * 40}-{number:08x}" for number in range(1000)]
    keep += [f"jobs/{number:08x}" for number in range(1000)]
    settings = Settings("localhost/trainer", "localhost/serving")
    wanted = build_janitor_job(namespace, "uid", keep, frozenset(), datetime.now(UTC), settings)
    made = operator.create(wanted)
    assert parse_keep_list(made) == set(keep)
    pod = {"metadata": {"namespace": namespace, "name": "janitor"}, "apiVersion": "v1"}
    pod |= {"kind": "Pod", "spec": made["spec"]["template"]["spec"]}
    api.create(pod)
    with pytest.raises(ApiError) as refusal:
        operator.create(wanted)
    assert refusal.value.status == 409


def refused(client: Api, method: str, path: str, body: Any = None) -> None:
    """Assert that the API server forbids the call, not only that it fails."""
    with pytest.raises(ApiError) as refusal:
        client.request(method, path, body)
    assert refusal.value.status == 403


def child(kind: str, version: str, namespace: str, **rest: Any) -> Manifest:
    metadata = {"name": f"child-{uuid.uuid4().hex[:8]}", "namespace": namespace}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


POD = {"containers": [{"name": "main", "image": "localhost/any"}], "restartPolicy": "Never"}
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": POD}


def test_the_operator_creates_and_deletes_the_children_of_a_job_and_writes_its_status(
    api: Api, installed: Installed
) -> None:
    operator, namespace = installed.operator, installed.namespace
    spec = {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "s3://bucket/rows.jsonl"}]},
    }
    wish = api.create(child("FineTuneJob", API_VERSION, namespace, spec=spec))
    name = wish["metadata"]["name"]
    batch = operator.create(child("Job", "batch/v1", namespace, spec={"template": TEMPLATE}))
    operator.create(child("ConfigMap", "v1", namespace, data={"run.json": "{}"}, immutable=True))
    operator.create(child("Service", "v1", namespace, spec={"clusterIP": "None"}))
    size = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteMany"]}
    operator.create(child("PersistentVolumeClaim", "v1", namespace, spec=size))
    operator.patch("FineTuneJob", namespace, name, {"status": {"phase": "Preparing"}}, "status")
    about = {"kind": "FineTuneJob", "name": name, "namespace": namespace}
    event = operator.create(child("Event", "v1", namespace, involvedObject=about))
    operator.patch("Event", namespace, event["metadata"]["name"], {"count": 2})
    operator.delete("Job", namespace, batch["metadata"]["name"])
    assert operator.list("Job", namespace) == []

    (seen,) = operator.list("FineTuneJob", namespace)
    assert seen["status"]["phase"] == "Preparing"
    operator.delete("FineTuneJob", namespace, name)
    assert operator.list("FineTuneJob", namespace) == []
    for kind in ("FineTuneJob", "ModelEndpoint", "AcceleratorProfile", "Pod", "ConfigMap"):
        assert operator.list(kind) is not None


def test_the_operator_reads_the_schemas_of_the_crds_without_a_permission(
    installed: Installed,
) -> None:
    document = installed.operator.request("GET", f"/openapi/v3/apis/{API_VERSION}")
    assert {kind.name for kind in KINDS} <= select_served_schemas(document).keys()
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    refused(installed.operator, "GET", f"{crds}/finetunejobs.finetune.dev")


def test_the_operator_rolls_out_an_endpoint(api: Api, installed: Installed) -> None:
    operator, namespace = installed.operator, installed.namespace
    endpoint = child("ModelEndpoint", API_VERSION, namespace, spec={"gpus": 1})
    name = operator.create(endpoint)["metadata"]["name"]
    operator.patch("ModelEndpoint", namespace, name, {"status": {"phase": "Ready"}}, "status")
    labels = {"matchLabels": {"a": "b"}}
    template = {**TEMPLATE, "spec": {"containers": POD["containers"]}}
    deployment = operator.create(
        child("Deployment", "apps/v1", namespace, spec={"selector": labels, "template": template})
    )
    operator.patch(
        "Deployment", namespace, deployment["metadata"]["name"], {"spec": {"replicas": 2}}
    )
    pointer = child(
        "Service", "v1", namespace, spec={"ports": [{"port": 80}], "selector": {"a": "b"}}
    )
    operator.apply(pointer, manager=RELEASE)
    operator.delete("Deployment", namespace, deployment["metadata"]["name"])


def test_the_operator_cannot_read_secrets_run_pods_or_change_specs_of_users(
    api: Api, installed: Installed
) -> None:
    operator, namespace = installed.operator, installed.namespace
    core = f"/api/v1/namespaces/{namespace}"
    ours = f"/apis/{API_VERSION}/namespaces/{namespace}"
    refused(operator, "GET", "/api/v1/secrets")
    refused(operator, "GET", f"{core}/secrets/hf-token")
    refused(operator, "POST", f"{core}/pods", child("Pod", "v1", namespace, spec=POD))
    refused(operator, "GET", f"{core}/pods/any/log")
    refused(operator, "POST", f"{core}/pods/any/exec")
    refused(operator, "PATCH", f"{ours}/finetunejobs/wish", {"spec": {"maxRestarts": 9}})
    refused(operator, "DELETE", f"{ours}/modelendpoints/bot")
    refused(operator, "DELETE", f"{core}/persistentvolumeclaims/finetune-workspace")
    refused(operator, "POST", f"{core}/serviceaccounts/default/token", {"spec": {}})
    refused(operator, "GET", "/api/v1/nodes")
    refused(operator, "GET", "/api/v1/namespaces")


def test_with_watched_namespaces_the_operator_has_permissions_only_there(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    other = f"{namespace}-other"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    for each in install(control_plane, api, namespace, f"watchNamespaces={{{namespace}}}"):
        for (group, resource), verbs in IN_NAMESPACES.items():
            allowed = {v for v in VERBS if may(each.operator, v, group, resource, namespace)}
            assert allowed == verbs, resource
            assert not any(may(each.operator, v, group, resource, other) for v in VERBS)
        assert each.operator.list("AcceleratorProfile") is not None
        assert not any(may(each.operator, verb, *PROFILE_STATUS, namespace) for verb in VERBS)
        assert may(each.operator, "get", "coordination.k8s.io", "leases", namespace, RELEASE)


def test_no_rule_has_a_wildcard_or_names_secrets() -> None:
    for settings in ((), ("watchNamespaces={a}",)):
        roles = [m for m in rendered(*settings) if m["kind"] in ("Role", "ClusterRole")]
        rules = [rule for role in roles for rule in role["rules"]]
        words = {word for rule in rules for listed in rule.values() for word in listed}
        assert len(rules) > 10
        assert not [word for word in words if "*" in word or "secret" in word]


def test_users_who_may_edit_a_namespace_may_edit_its_jobs() -> None:
    roles = {m["metadata"]["name"]: m for m in rendered() if m["kind"] == "ClusterRole"}
    edit = roles[f"{RELEASE}-edit"]
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert edit["rules"][0]["resources"] == ["finetunejobs", "modelendpoints"]
    (scale,) = [r for r in edit["rules"] if r["resources"] == ["modelendpoints/scale"]]
    assert {"get", "update", "patch"} == {*scale["verbs"]}
