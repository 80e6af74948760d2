"""The kinds in kubectl: columns, names, status as a subresource, shared field ownership."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import pytest
from finetune_api import API_VERSION
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.modelendpoint import ModelEndpointStatus

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.client import Api, ApiError, Manifest

DIGEST = "sha256:" + 64 * "0"
NOW = "2026-01-02T03:04:05Z"


def job(namespace: str) -> Manifest:
    spec = {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "s3://bucket/rows.jsonl"}]},
    }
    metadata = {"name": "wish", "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}


def endpoint(namespace: str, **spec: Any) -> Manifest:
    artifact = {"uri": "pvc://finetune-workspace/artifacts/wish-01234567", "digest": DIGEST}
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelEndpoint",
        "metadata": {"name": "bot", "namespace": namespace},
        "spec": {"artifact": artifact, **spec},
    }


def condition(kind: str, status: str = "False") -> dict[str, Any]:
    times = {"lastTransitionTime": NOW}
    return {"type": kind, "status": status, "reason": "Running", "message": "", **times}


JOB_STATUS = FineTuneJobStatus.model_validate(
    {
        "observedGeneration": 1,
        "phase": "Training",
        "message": "training on 2 nodes",
        "conditions": [condition("Succeeded", "Unknown"), condition("Reconciling", "True")],
        "stages": [{"name": "train", "state": "Running", "attempt": 1}],
        "progress": {
            "stage": "train",
            "step": 40,
            "totalSteps": 380,
            "loss": 2.3456,
            "etaSeconds": 200,
        },
    }
).to_wire()


def table(plane: ControlPlane, *words: str) -> dict[str, str]:
    """The first row of what kubectl get prints, by the column's heading."""
    heading, row = plane.kubectl("get", *words).splitlines()[:2]
    starts = [i for i, c in enumerate(heading) if c != " " and (i == 0 or heading[i - 1] == " ")]
    cells = [slice(a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return {heading[cell].strip(): row[cell].strip() for cell in cells}


def test_a_list_comes_back_as_it_was_written(api: Api, namespace: str) -> None:
    """Argo CD compares whole lists with those in git."""
    wish = job(namespace)
    wish["spec"]["grpo"] = {"rewards": [{"type": "json"}]}
    wish["spec"]["objective"] = "GRPO"
    found = api.create(wish)["spec"]
    assert found["dataset"]["train"] == wish["spec"]["dataset"]["train"]
    assert found["grpo"]["rewards"] == wish["spec"]["grpo"]["rewards"]


def test_kubectl_get_shows_the_state_of_a_job_in_one_line(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    api.create(job(namespace))
    api.patch("FineTuneJob", namespace, "wish", {"status": JOB_STATUS}, "status")

    row = table(control_plane, "ftj", "-n", namespace)
    age = row.pop("AGE")
    assert age.endswith("s")
    assert row == {
        "NAME": "wish",
        "PHASE": "Training",
        "STEP": "40",
        "STEPS": "380",
        "LOSS": "2.3456",
        "MESSAGE": "training on 2 nodes",
    }
    wide = table(control_plane, "ftj", "-n", namespace, "-o", "wide")
    assert wide["MODEL"] == "hf://org/model"
    assert wide["RESTARTS"] == str(JOB_STATUS["restarts"])


def test_kubectl_get_shows_the_state_of_an_endpoint_in_one_line(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    api.create(endpoint(namespace))
    status = {"phase": "Ready", "activeRevision": 2, "url": "http://bot.x.svc/v1", "message": "ok"}
    whole = ModelEndpointStatus.model_validate(status).to_wire()
    api.patch("ModelEndpoint", namespace, "bot", {"status": whole}, "status")

    row = table(control_plane, "mep", "-n", namespace)
    assert [row[k] for k in ("PHASE", "REVISION", "URL", "MESSAGE")] == [
        "Ready",
        "2",
        "http://bot.x.svc/v1",
        "ok",
    ]


def test_kubectl_get_shows_the_profiles(control_plane: ControlPlane, api: Api) -> None:
    spec = {
        "memoryPerDevice": "79Gi",
        "resourceName": "nvidia.com/gpu",
        "devicesPerNode": 8,
        "default": True,
    }
    metadata = {"name": "shown"}
    kind = "AcceleratorProfile"
    api.create({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec})

    row = table(control_plane, "accel", "shown")
    assert [row[k] for k in ("DEFAULT", "RESOURCE", "DEVICES", "MEMORY")] == [
        "true",
        "nvidia.com/gpu",
        "8",
        "79Gi",
    ]
    api.delete(kind, "", "shown")


def listed(control_plane: ControlPlane, category: str, namespace: str) -> list[str]:
    """Names by category, which the API server's discovery serves a moment after the kinds."""
    deadline = time.monotonic() + 30
    while True:
        # kubectl would cache for minutes that a kind was missing.
        with tempfile.TemporaryDirectory() as cache:
            wanted = ("get", category, "-n", namespace, "-o", "name", "--cache-dir", cache)
            try:
                names = control_plane.kubectl(*wanted).split()
            except ClusterError:
                names = []
        if len(names) > 1 or time.monotonic() > deadline:
            return names
        time.sleep(0.2)


@pytest.mark.parametrize("category", ["all", "finetune"])
def test_jobs_and_endpoints_are_found_by_category(
    control_plane: ControlPlane, api: Api, namespace: str, category: str
) -> None:
    api.create(job(namespace))
    api.create(endpoint(namespace))
    found = listed(control_plane, category, namespace)
    # Profiles are cluster-scoped, so those of other tests are listed too.
    ours = [each for each in found if not each.startswith("acceleratorprofile")]
    assert ours == ["finetunejob.finetune.dev/wish", "modelendpoint.finetune.dev/bot"]


def test_every_field_is_explained(control_plane: ControlPlane) -> None:
    text = control_plane.kubectl("explain", "finetunejob.spec.dataset.holdout")
    assert "Percentage of the training data that is held out" in text


def test_a_write_of_the_spec_changes_no_status_and_a_write_of_the_status_no_spec(
    api: Api, namespace: str
) -> None:
    unseen = {"observedGeneration": -1}
    assert api.create({**job(namespace), "status": JOB_STATUS})["status"] == unseen

    edit = {"status": {"phase": "Succeeded"}, "spec": {"maxRestarts": 9}}
    assert api.patch("FineTuneJob", namespace, "wish", edit)["status"] == unseen
    edit = {"status": {"phase": "Succeeded"}, "spec": {"maxRestarts": 1}}
    assert api.patch("FineTuneJob", namespace, "wish", edit, "status")["spec"]["maxRestarts"] == 9


def test_a_status_comes_back_as_it_was_written(api: Api, namespace: str) -> None:
    api.create(job(namespace))
    back = api.patch("FineTuneJob", namespace, "wish", {"status": JOB_STATUS}, "status")["status"]
    assert back == JOB_STATUS
    assert back == api.get("FineTuneJob", namespace, "wish")["status"]


def test_a_status_write_for_an_outdated_object_is_refused(api: Api, namespace: str) -> None:
    planned_from = api.create(job(namespace))["metadata"]["resourceVersion"]
    api.patch("FineTuneJob", namespace, "wish", {"spec": {"maxRestarts": 9}})
    late = {"metadata": {"resourceVersion": planned_from}, "status": JOB_STATUS}
    with pytest.raises(ApiError) as refusal:
        api.patch("FineTuneJob", namespace, "wish", late, "status")
    assert refusal.value.status == 409


def test_a_status_has_one_condition_of_each_type(api: Api, namespace: str) -> None:
    api.create(job(namespace))
    twice = {"conditions": [condition("Succeeded"), condition("Succeeded")]}
    with pytest.raises(ApiError, match="Duplicate value"):
        api.patch("FineTuneJob", namespace, "wish", {"status": twice}, "status")


def test_an_endpoint_without_an_artifact_follows_and_an_empty_spec_is_enough(
    api: Api, namespace: str
) -> None:
    made = api.create({**endpoint(namespace), "spec": {}})
    assert made["spec"] == {"gpus": 1, "replicas": 1}


def test_a_probe_needs_the_artifact_whose_answer_it_holds(api: Api, namespace: str) -> None:
    probe = {"messages": [{"role": "user", "content": "hi"}], "answer": "ho", "maxTokens": 8}
    api.create(endpoint(namespace, probe=probe))
    with pytest.raises(ApiError, match="set artifact too, or remove probe"):
        api.patch("ModelEndpoint", namespace, "bot", {"spec": {"artifact": None}})
    follow = {"spec": {"artifact": None, "probe": None}}
    assert api.patch("ModelEndpoint", namespace, "bot", follow)["spec"]["replicas"] == 1


def test_an_apply_that_changes_nothing_leaves_the_object_as_it_is(api: Api, namespace: str) -> None:
    """Once it has a status: the first write of any kind stores the default of the status."""
    api.apply(endpoint(namespace), manager="finetune-operator")
    first = api.patch("ModelEndpoint", namespace, "bot", {"status": {"phase": "Ready"}}, "status")
    again = api.apply(endpoint(namespace), manager="finetune-operator")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
