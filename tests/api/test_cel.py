"""What is wrong with a wish is said by the API server, with the field and what to do."""

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
        "give validation or holdout, not both",
    ),
    "a holdout of nothing": (
        {"dataset__holdout": "0%"},
        "must be a percentage above 0% and below 100%, such as 10%",
    ),
    "a number where a percentage belongs": ({"dataset__holdout": 10}, "spec.dataset.holdout"),
    "LoRA's settings for full training": (
        {"method": {"type": "Full", "lora": {"rank": 8}}},
        "lora is only for type LoRA",
    ),
    "a revision of what has none": (
        {"model": {"uri": "s3://bucket/model", "revision": "main"}},
        "revision needs an hf:// uri",
    ),
    "a revision of a file": (
        {"dataset__train": [{"uri": "s3://b/1.jsonl", "revision": "main"}]},
        "revision needs an hf:// uri",
    ),
    "an address without a scheme": (
        {"model__uri": "org/model"},
        'spec.model.uri: Invalid value: "org/model": uri must start with hf://, s3://, gs://, '
        "https:// or pvc:// and hold no spaces",
    ),
    "an address with a space": ({"model__uri": "hf://org/my model"}, "hold no spaces"),
    "a wrong gate": (
        {"evaluation__gate": [{"metric": "loss", "minImprovement": "2"}]},
        "must be a percentage such as 2% or -0.5%",
    ),
    "an unknown metric": (
        {"evaluation__gate": [{"metric": "bleu", "minImprovement": "2%"}]},
        "spec.evaluation.gate[0].metric: Unsupported",
    ),
    "an endpoint that no Service can be named after": (
        {"serve__endpoint": "9bots"},
        "begin with a letter",
    ),
    "an endpoint with a long name": ({"serve__endpoint": "a" * 41}, "spec.serve.endpoint"),
    "a learning rate of zero": (
        {"training__learningRate": 0},
        "spec.training.learningRate",
    ),
    "a Secret with a wrong name": (
        {"model__credentialsSecret": "My Token"},
        "must be the name of an object",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_job_is_refused_for(api: Api, namespace: str, what: str) -> None:
    changes, says = REFUSED[what]
    with pytest.raises(ApiError) as refusal:
        api.create(job(namespace, **changes))
    assert says in refusal.value.message
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
    ("name", "says"),
    [
        ("a" * 41, "metadata.name must have at most 40 characters"),
        ("1st-job", "begin with a letter"),
        ("my.job", "lower-case letters, digits and '-'"),
    ],
)
def test_a_name_that_no_child_can_be_named_after_is_refused(
    api: Api, namespace: str, name: str, says: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        api.create(job(namespace, name))
    assert says in refusal.value.message

    artifact = {"uri": "pvc://claim/folder", "digest": "sha256:" + 64 * "0"}
    endpoint = {**job(namespace, name), "kind": "ModelEndpoint", "spec": {"artifact": artifact}}
    with pytest.raises(ApiError) as refusal:
        api.create(endpoint)
    assert says in refusal.value.message


def test_the_longest_name_is_admitted(api: Api, namespace: str) -> None:
    assert api.create(job(namespace, "a" * 40))["metadata"]["uid"]


BEGUN = {"status": {"phase": "Training", "observedGeneration": 1}}
EDITS: dict[str, Any] = {
    "model": {"uri": "hf://org/other"},
    "dataset": {"holdout": "5%"},
    "method": {"type": "Full"},
    "training": {"epochs": 5},
    "compute": {"nodes": 2},
    "evaluation": {"generations": 8},
}


@pytest.mark.parametrize("field", EDITS)
def test_a_job_that_has_begun_keeps_its(api: Api, namespace: str, field: str) -> None:
    api.create(job(namespace))
    api.patch("FineTuneJob", namespace, "wish", BEGUN, "status")

    with pytest.raises(ApiError) as refusal:
        api.patch("FineTuneJob", namespace, "wish", {"spec": {field: EDITS[field]}})

    says = refusal.value.message
    assert f"spec.{field}: Invalid value: {field} cannot change once the job has begun" in says
    assert "(only maxRestarts and serve can)" in says
    assert "create a new FineTuneJob" in says
    assert not [other for other in EDITS if other != field and f"spec.{other}: " in says]


@pytest.mark.parametrize("phase", [None, "Pending"])
@pytest.mark.parametrize("field", EDITS)
def test_a_job_that_has_not_begun_may_change_its(
    api: Api, namespace: str, field: str, phase: str | None
) -> None:
    api.create(job(namespace))
    if phase:
        api.patch("FineTuneJob", namespace, "wish", {"status": {"phase": phase}}, "status")

    changed = api.patch("FineTuneJob", namespace, "wish", {"spec": {field: EDITS[field]}})

    assert EDITS[field].items() <= changed["spec"][field].items()
    assert changed["metadata"]["generation"] == 2


@pytest.mark.parametrize("phase", ["Preparing", "Training", "Succeeded"])
def test_where_it_is_served_and_how_often_it_is_tried_may_change_at_any_time(
    api: Api, namespace: str, phase: str
) -> None:
    api.create(job(namespace))
    api.patch("FineTuneJob", namespace, "wish", {"status": {"phase": phase}}, "status")
    edit = {"spec": {"serve": {"endpoint": "other"}, "maxRestarts": 9}}
    changed = api.patch("FineTuneJob", namespace, "wish", edit)["spec"]
    assert changed["serve"] == {"endpoint": "other"}
    assert changed["maxRestarts"] == 9

    changed = api.patch("FineTuneJob", namespace, "wish", {"spec": {"serve": None}})["spec"]
    assert "serve" not in changed


def test_labels_and_status_of_a_job_that_has_begun_may_change(api: Api, namespace: str) -> None:
    api.create(job(namespace))
    api.patch("FineTuneJob", namespace, "wish", BEGUN, "status")
    labelled = {"metadata": {"labels": {"team": "search"}}}
    assert api.patch("FineTuneJob", namespace, "wish", labelled)["spec"]
    done = {"status": {"phase": "Succeeded"}}
    assert api.patch("FineTuneJob", namespace, "wish", done, "status")["status"]["phase"]


@pytest.mark.parametrize(
    ("toleration", "says"),
    [
        ({"operator": "Exists", "key": "gpu", "value": "x"}, "value is only for operator Equal"),
        ({"value": "x"}, "operator Equal needs a key"),
    ],
)
def test_a_toleration_that_pods_could_not_have_is_refused(
    api: Api, toleration: dict[str, str], says: str
) -> None:
    with pytest.raises(ApiError, match=says):
        api.create(profile(tolerations=[toleration]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memoryPerDevice": "80 GB"}, "must be a quantity such as 80Gi, 500m or 4"),
        ({"env": [{"name": "LD_PRELOAD", "value": "x"}]}, "must begin with NCCL_, GLOO_"),
        ({"env": [{"name": "NCCL_A", "value": v} for v in "xy"]}, "Duplicate value"),
    ],
)
def test_a_profile_is_refused_for(api: Api, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError) as refusal:
        api.create(profile(**changes))
    assert says in refusal.value.message


def profile(**changes: Any) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "AcceleratorProfile",
        "metadata": {"generateName": "pool-"},
        "spec": {"memoryPerDevice": "80Gi", **changes},
    }
