"""The API server rejects a bad spec with the field and what to do."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from finetune_api import API_VERSION

from tests.api.client import Api, ApiError, Manifest

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://org/model"},
    "dataset": {"train": [{"uri": "s3://bucket/rows.jsonl"}]},
}


def job(namespace: str, name: str = "wish", **changes: Any) -> Manifest:
    """A FineTuneJob; a change is named by its path below spec, `__` between fields."""
    spec = deepcopy(SPEC)
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = spec
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def rows(uri: str, **fields: Any) -> dict[str, Any]:
    """The change that makes `uri` the only source of rows."""
    return {"dataset__train": [{"uri": uri, **fields}]}


TWO = [{"uri": "s3://b/1.jsonl"}, {"uri": "s3://b/2.jsonl"}]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"training__epoch": 1}, 'unknown field "spec.training.epoch"'),
    "a field in the wrong place": ({"epochs": 1}, 'unknown field "spec.epochs"'),
    "a wrong enum": (
        {"method__type": "Lora"},
        'spec.method.type: Unsupported value: "Lora": supported values: "LoRA", "Full"',
    ),
    "a wrong strategy": ({"compute__strategy": "Magic"}, "spec.compute.strategy: Unsupported"),
    "more data sources than are taken": (
        {"dataset__train": 9 * TWO},
        "spec.dataset.train: Too many: 18",
    ),
    "no data source": ({"dataset__train": []}, "spec.dataset.train"),
    "validation and holdout": (
        {"dataset__validation": TWO[0], "dataset__holdout": "10%"},
        "dataset has validation and holdout; leave one of them out",
    ),
    "a holdout of nothing": (
        {"dataset__holdout": "0%"},
        "must be a percentage above 0% and below 100%, such as 10%",
    ),
    "a number where a percentage belongs": ({"dataset__holdout": 10}, "spec.dataset.holdout"),
    "LoRA's settings for full training": (
        {"method": {"type": "Full", "lora": {"rank": 8}}},
        "method.lora is only for method.type LoRA",
    ),
    "a revision of an s3:// model": (
        {"model": {"uri": "s3://bucket/model", "revision": "main"}},
        "revision is only for hf:// addresses",
    ),
    "a revision of a file": (
        rows("s3://b/1.jsonl", revision="main"),
        "revision is only for hf:// addresses; leave it out, and pin an object at s3:// or gs:// "
        "with version",
    ),
    "a version of a data set on the hub": (
        rows("hf://datasets/a/b", version="v1"),
        "version is only for s3:// and gs:// addresses; leave it out, and pin an hf:// data set "
        "with revision",
    ),
    "a version of a file of a claim": (
        {"dataset__validation": {"uri": "pvc://claim/rows.jsonl", "version": "v1"}},
        "spec.dataset.validation.version: Invalid value",
    ),
    "a version of a folder": (
        rows("s3://b/rows/", version="v1"),
        "version is that of one object: name the object in uri",
    ),
    "a version of several files": (
        rows("s3://b/rows", files="*.jsonl", version="v1"),
        "pin a folder with sha256",
    ),
    "a generation that is none": (
        rows("gs://b/rows.jsonl", version="v1"),
        "version of a gs:// object must be its generation",
    ),
    "an address without a scheme": (
        {"model__uri": "org/model"},
        'spec.model.uri: Invalid value: "org/model": uri must start with hf://, s3://, gs://, '
        "https:// or pvc:// and contain no spaces",
    ),
    "a repository with a space": ({"model__uri": "hf://org/my model"}, "contain no spaces"),
    "an address with a space at its end": ({"model__uri": "pvc://c/model "}, "contain no spaces"),
    "files of an https address": (
        rows("https://host/rows.jsonl", files="*.jsonl"),
        "an https:// address is one file; leave files, split and config out",
    ),
    "files and a configuration": (
        rows("hf://datasets/a/b", files="*", config="en"),
        "a source has files and config; leave one of them out",
    ),
    "part of a split": (
        rows("hf://datasets/a/b", split="train[:10%]"),
        "must be the name of one split",
    ),
    "a digest that is none": (
        rows("s3://b/rows.jsonl", sha256="4d7a"),
        "must be 64 hex digits",
    ),
    "an invalid name of a claim": ({"model__uri": "pvc://claim-/folder"}, "the name of a claim"),
    "an address with a control character": ({"model__uri": "hf://org/a\x07"}, "contain no spaces"),
    "an endpoint that no Service can be named after": (
        {"serve__endpoint": "9bots"},
        "begin with a letter",
    ),
    "an endpoint with a long name": ({"serve__endpoint": "a" * 41}, "spec.serve.endpoint"),
    "a priority class of the cluster": (
        {"priorityClassName": "system-node-critical"},
        "must not begin with system-",
    ),
    "a label by which endpoints find their pods": (
        {"podMetadata": {"labels": {"app": "bot-r1"}}},
        "spec.podMetadata.labels: Invalid value: a key must not be app",
    ),
    "an annotation of Kubernetes": (
        {"podMetadata": {"annotations": {"kubernetes.io/psp": "x"}}},
        "a key must not be app, job-name",
    ),
    "a name that no ServiceAccount has": (
        {"serviceAccountName": "S3"},
        "must be the name of an object",
    ),
    "a learning rate of zero": (
        {"training__learningRate": 0},
        "spec.training.learningRate",
    ),
    "a Secret with a wrong name": (
        {"model__credentialsSecretRef": {"name": "My Token"}},
        "must be the name of an object",
    ),
}


@pytest.mark.parametrize(
    "uri",
    [
        "hf://datasets/org/name/My Data/rows #1.jsonl",
        "s3://bucket/My Data/100%.jsonl",
        "https://host/My%20Data/rows.jsonl",
        "pvc://claim/My Data/t\u00f6ne & c#",
    ],
)
def test_names_in_an_address_may_have_spaces(api: Api, namespace: str, uri: str) -> None:
    api.create(job(namespace, **rows(uri)))


@pytest.mark.parametrize(
    ("uri", "version"),
    [("s3://b/rows.jsonl", "3sL4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY"), ("gs://b/rows.jsonl", "17" * 8)],
)
def test_a_version_of_an_object_is_admitted(
    api: Api, namespace: str, uri: str, version: str
) -> None:
    api.create(job(namespace, **rows(uri, version=version)))


@pytest.mark.parametrize("what", REFUSED)
def test_a_job_is_refused_for(api: Api, namespace: str, what: str) -> None:
    changes, message = REFUSED[what]
    with pytest.raises(ApiError) as refusal:
        api.create(job(namespace, **changes))
    assert message in refusal.value.message
    assert refusal.value.status in (400, 422)
    assert api.list("FineTuneJob", namespace) == []


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_job_is_refused_without(api: Api, namespace: str, kind: str) -> None:
    manifest = job(namespace)
    del manifest["spec"][kind]
    with pytest.raises(ApiError, match=f"spec.{kind}: Required value"):
        api.create(manifest)


def test_a_job_is_refused_without_a_spec(api: Api, namespace: str) -> None:
    manifest = job(namespace)
    del manifest["spec"]
    with pytest.raises(ApiError, match="spec: Required value"):
        api.create(manifest)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 41, "metadata.name must have at most 40 characters"),
        ("1st-job", "begin with a letter"),
        ("my.job", "lower-case letters, digits and '-'"),
    ],
)
def test_a_name_that_is_invalid_for_children_is_refused(
    api: Api, namespace: str, name: str, message: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        api.create(job(namespace, name))
    assert message in refusal.value.message

    artifact = {"uri": "pvc://claim/folder", "digest": "sha256:" + 64 * "0"}
    endpoint = {**job(namespace, name), "kind": "ModelEndpoint", "spec": {"artifact": artifact}}
    with pytest.raises(ApiError) as refusal:
        api.create(endpoint)
    assert message in refusal.value.message


def test_the_longest_name_is_admitted(api: Api, namespace: str) -> None:
    assert api.create(job(namespace, "a" * 40))["metadata"]["uid"]


STARTED = {"startedAt": "2026-01-05T12:00:00Z", "observedGeneration": 1}
TRAINING = {"status": {"phase": "Training", **STARTED}}
EDITS: dict[str, Any] = {
    "model": {"uri": "hf://org/other"},
    "dataset": {"holdout": "5%"},
    "method": {"type": "Full"},
    "training": {"epochs": 5},
    "compute": {"nodes": 2},
    "evaluation": {"generations": 8},
    "serviceAccountName": "other",
    "priorityClassName": "urgent",
    "podMetadata": {"labels": {"team": "search"}},
}
MUTABLE_WHILE_RUNNING: dict[str, Any] = {
    "serve": {"endpoint": "other"},
    "maxRestarts": 9,
    "suspend": True,
    "activeDeadlineSeconds": 60,
}
ALWAYS_MUTABLE = {"ttlSecondsAfterFinished": 60}


def refusal_of(api: Api, namespace: str, spec: dict[str, Any]) -> str:
    """The message with which the API server rejects this change of the job's spec."""
    with pytest.raises(ApiError) as refusal:
        api.patch("FineTuneJob", namespace, "wish", {"spec": spec})
    return refusal.value.message


@pytest.mark.parametrize("field", EDITS)
def test_after_its_start_a_job_keeps_its(api: Api, namespace: str, field: str) -> None:
    api.create(job(namespace))
    api.patch("FineTuneJob", namespace, "wish", TRAINING, "status")

    message = refusal_of(api, namespace, {field: EDITS[field]})

    expected = f"spec.{field}: Invalid value: {field} cannot change after the job has started"
    assert expected in message
    mutable = "activeDeadlineSeconds, maxRestarts, serve, suspend, ttlSecondsAfterFinished"
    assert f"(only {mutable} can)" in message
    assert "create a new FineTuneJob" in message
    assert not [other for other in EDITS if other != field and f"spec.{other}: " in message]


def test_after_its_start_a_job_keeps_the_values_of_template_variables(
    api: Api, namespace: str
) -> None:
    """Their types are not in the schema, and CEL compares only what is."""
    values = {"enable_thinking": False, "reasoning_effort": "high", "budget": 3}
    api.create(job(namespace, model__tokenizer__chatTemplateKwargs=values))
    api.patch("FineTuneJob", namespace, "wish", TRAINING, "status")
    for name, value in {"enable_thinking": True, "reasoning_effort": "low", "budget": None}.items():
        edit = {"model": {"tokenizer": {"chatTemplateKwargs": {name: value}}}}
        assert "model cannot change" in refusal_of(api, namespace, edit)


@pytest.mark.parametrize("phase", [None, "Pending", "Suspended"])
@pytest.mark.parametrize("field", EDITS)
def test_before_its_start_a_job_may_change_its(
    api: Api, namespace: str, field: str, phase: str | None
) -> None:
    api.create(job(namespace))
    if phase:
        api.patch("FineTuneJob", namespace, "wish", {"status": {"phase": phase}}, "status")

    changed = api.patch("FineTuneJob", namespace, "wish", {"spec": {field: EDITS[field]}})

    found = changed["spec"][field]
    if isinstance(found, dict):
        found = {key: found[key] for key in EDITS[field]}
    assert found == EDITS[field]
    assert changed["metadata"]["generation"] == 2


@pytest.mark.parametrize("phase", ["Preparing", "Training", "Suspended", "Deploying"])
def test_fields_that_the_operator_acts_on_may_change_while_the_job_runs(
    api: Api, namespace: str, phase: str
) -> None:
    api.create(job(namespace))
    stages = [{"name": "serve", "state": "Pending", "attempt": 0}]
    status = {"status": {"phase": phase, "stages": stages, **STARTED}}
    api.patch("FineTuneJob", namespace, "wish", status, "status")

    wanted = {**MUTABLE_WHILE_RUNNING, **ALWAYS_MUTABLE}
    changed = api.patch("FineTuneJob", namespace, "wish", {"spec": wanted})["spec"]
    assert {name: changed[name] for name in wanted} == wanted

    gone = {"serve": None, "activeDeadlineSeconds": None, "suspend": None}
    changed = api.patch("FineTuneJob", namespace, "wish", {"spec": gone})["spec"]
    assert "serve" not in changed
    assert changed["suspend"] is False


@pytest.mark.parametrize("has_started", [True, False])
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_job_that_has_ended_may_change_its_time_to_live_and_nothing_else(
    api: Api, namespace: str, phase: str, has_started: bool
) -> None:
    """Also a job that failed before its first stage."""
    api.create(job(namespace))
    status = {"status": {"phase": phase, **(STARTED if has_started else {})}}
    api.patch("FineTuneJob", namespace, "wish", status, "status")

    for field, value in MUTABLE_WHILE_RUNNING.items():
        message = refusal_of(api, namespace, {field: value})
        assert f"{field} cannot change after the job has ended (only ttlSeconds" in message
        assert "create a new FineTuneJob" in message
    assert "cannot change after the job has started" in refusal_of(api, namespace, EDITS)

    for seconds in (60, None):
        edit = {"spec": {"ttlSecondsAfterFinished": seconds}}
        changed = api.patch("FineTuneJob", namespace, "wish", edit)["spec"]
        assert changed.get("ttlSecondsAfterFinished") == seconds


@pytest.mark.parametrize("phase", ["Deploying", "Suspended"])
@pytest.mark.parametrize("serve", [None, {"endpoint": "other"}, {"profile": "l4"}])
def test_after_the_job_has_handed_its_model_over_serve_cannot_change(
    api: Api, namespace: str, phase: str, serve: dict[str, str] | None
) -> None:
    api.create(job(namespace, serve__endpoint="bot"))
    stages = [{"name": "serve", "state": "Running", "attempt": 1}]
    status = {"status": {"phase": phase, "stages": stages, **STARTED}}
    api.patch("FineTuneJob", namespace, "wish", status, "status")

    message = refusal_of(api, namespace, {"serve": serve})

    assert "serve cannot change after the job has handed its model to the endpoint" in message
    assert "set spec.artifact of the ModelEndpoint" in message


def test_labels_and_status_of_a_started_job_may_change(api: Api, namespace: str) -> None:
    api.create(job(namespace))
    api.patch("FineTuneJob", namespace, "wish", TRAINING, "status")
    labelled = {"metadata": {"labels": {"team": "search"}}}
    assert api.patch("FineTuneJob", namespace, "wish", labelled)["spec"]
    done = {"status": {"phase": "Succeeded"}}
    assert api.patch("FineTuneJob", namespace, "wish", done, "status")["status"]["phase"]


@pytest.mark.parametrize(
    ("toleration", "message"),
    [
        ({"operator": "Exists", "key": "gpu", "value": "x"}, "value is only for operator Equal"),
        ({"value": "x"}, "operator Equal needs a key"),
        ({"key": ""}, "must be the key of a label"),
        ({"key": "gpu", "value": "a b"}, "must be the value of a label"),
    ],
)
def test_an_invalid_toleration_is_refused(
    api: Api, toleration: dict[str, str], message: str
) -> None:
    with pytest.raises(ApiError, match=message):
        api.create(profile(tolerations=[toleration]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memoryPerDevice": "80 GB"}, "must be a quantity such as 80Gi, 500m or 4"),
        ({"nodeSelector": {"pool of": "h100"}}, "a key must be the key of a label"),
        ({"nodeSelector": {"pool": "h100 "}}, "must be the value of a label"),
        ({"resourceName": "gpu"}, "must be the name of an extended resource"),
        ({"serving": {"image": " vllm:1"}}, "spec.serving.image"),
        ({"priorityClassName": "system-node-critical"}, "must not begin with system-"),
        ({"runtimeClassName": "Kata"}, "must be the name of an object"),
        ({"podMetadata": {"labels": {"app": "x"}}}, "a key must not be app, job-name"),
        (
            {
                "podMetadata": {
                    "annotations": {"container.apparmor.security.beta.kubernetes.io/a": "x"}
                }
            },
            "or of finetune.dev, kubernetes.io",
        ),
        ({"podMetadata": {"labels": {"a b": "x"}}}, "a key must be the key of a label"),
        ({"podMetadata": {"labels": {"team": "a b"}}}, "must be the value of a label"),
        ({"extraResources": {"memory": "1Gi"}}, "a key must be an extended resource"),
        ({"extraResources": {"x.kubernetes.io/a": "1"}}, "a key must not be of kubernetes.io"),
        ({"extraResources": {"rdma/hca": "500m"}}, "must be whole numbers above 0"),
        ({"extraResources": {"rdma/hca": "0"}}, "must be whole numbers above 0"),
        ({"extraResources": {"hugepages-2Mi": "3Mi"}}, "a multiple of the size of their pages"),
        (
            {"resourceName": "nvidia.com/gpu", "extraResources": {"nvidia.com/gpu": "1"}},
            "extraResources has resourceName, of which a pod gets as many as it has devices",
        ),
        (
            {"cpuPerDevice": "4", "limitsPerDevice": {"cpu": "3999m"}},
            "limitsPerDevice.cpu is less than cpuPerDevice",
        ),
        (
            {"limitsPerDevice": {"memory": "16G"}},
            "limitsPerDevice.memory is less than hostMemoryPerDevice",
        ),
        ({"env": [{"name": "LD_PRELOAD", "value": "x"}]}, "must begin with NCCL_, GLOO_"),
        ({"env": [{"name": "HF_TOKEN", "value": "x"}]}, "or be HTTP_PROXY, HTTPS_PROXY, NO_PROXY"),
        ({"env": [{"name": "NCCL_A", "value": v} for v in "xy"]}, "Duplicate value"),
    ],
)
def test_a_profile_is_refused_for(api: Api, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        api.create(profile(**changes))
    assert message in refusal.value.message


def test_a_profile_with_limits_of_its_requests_or_more_is_accepted(api: Api) -> None:
    limits = {"cpu": "4000m", "memory": "17Gi"}
    made = api.create(profile(limitsPerDevice=limits))
    assert made["spec"]["limitsPerDevice"] == limits
    api.delete("AcceleratorProfile", "", made["metadata"]["name"])


def test_a_profile_may_keep_pods_from_eviction(api: Api) -> None:
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    made = api.create(profile(podMetadata={"annotations": annotations}))
    assert made["spec"]["podMetadata"]["annotations"] == annotations
    api.delete("AcceleratorProfile", "", made["metadata"]["name"])


def test_a_profile_with_extra_resources_is_accepted(api: Api) -> None:
    extra = {"vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "5Gi", "hugepages-1Gi": "1024Mi"}
    made = api.create(profile(resourceName="nvidia.com/gpu", extraResources=extra))
    assert made["spec"]["extraResources"] == extra
    api.delete("AcceleratorProfile", "", made["metadata"]["name"])


def profile(**changes: Any) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "AcceleratorProfile",
        "metadata": {"generateName": "pool-"},
        "spec": {"memoryPerDevice": "80Gi", **changes},
    }
