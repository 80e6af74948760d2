"""Bad input ends in one clear line, before any training pod, and missing things are waited for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hack.demo.kubectl import KubectlError
from hack.demo.platform import Platform
from tests.e2e.history import PodHistory
from tests.e2e.jobs import condition, events, gone, job, tiny_job, until, wait_for_phase

GOOD = '{"prompt": "What is a byte?", "completion": "Eight bits."}\n'


def _data(running: Platform, name: str, text: str) -> dict[str, object]:
    path = running.assets / "data" / name
    path.write_text(text)
    path.chmod(0o644)
    return {"train": [{"uri": f"pvc://demo-assets/data/{name}"}]}


@pytest.mark.parametrize(
    ("name", "text", "reason", "line"),
    [
        ("broken", GOOD * 6 + '{"prompt": "What is a bit?", \n' + GOOD, "BrokenRow", 7),
        ("missing", GOOD * 2 + '{"prompt": "What is a bit?"}\n', "MissingColumn", 3),
        ("empty", "", "EmptyDataset", None),
        (
            "long",
            GOOD + json.dumps({"prompt": "bit " * 400, "completion": "A digit."}) + "\n",
            "PromptTooLong",
            2,
        ),
    ],
)
def test_broken_data_fails_in_prepare_with_file_line_and_remedy(
    running: Platform,
    history: PodHistory,
    name: str,
    text: str,
    reason: str,
    line: int | None,
) -> None:
    data = _data(running, f"{name}.jsonl", text)
    running.kubectl.apply(tiny_job(f"bad-{name}", dataset=data))
    found = wait_for_phase(running.kubectl, f"bad-{name}", "Failed", 120)
    failure = found["status"]["failure"]
    assert failure["stage"] == "prepare"
    assert failure["reason"] == reason
    assert failure.get("line") == line
    assert f"{name}.jsonl" in failure["file"]
    assert failure["remedy"]
    succeeded = condition(found, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", reason)
    reported = [
        event for event in events(running.kubectl, f"bad-{name}") if event["reason"] == reason
    ]
    assert reported
    assert reported[0]["type"] == "Warning"
    assert not history.of(f"bad-{name}", "train")


def test_model_that_does_not_exist_is_not_tried_again(
    running: Platform, history: PodHistory
) -> None:
    bad = tiny_job("no-model", model={"uri": "pvc://demo-assets/models/none"})
    running.kubectl.apply(bad)
    found = wait_for_phase(running.kubectl, "no-model", "Failed", 120)
    assert found["status"]["failure"]["reason"] == "ModelNotFound"
    assert len(history.of("no-model", "prepare")) == 1
    assert found["status"].get("restarts", 0) == 0


def test_job_waits_for_a_missing_profile_and_goes_on(running: Platform) -> None:
    _absent(running, "acceleratorprofile", "later")
    running.kubectl.apply(tiny_job("waits-profile", compute={"profile": "later"}))
    _stalled(running, "waits-profile", "ProfileNotFound", "later")
    profile = running.kubectl.json("get", "acceleratorprofile", "cpu")
    running.kubectl.apply(
        {
            "apiVersion": profile["apiVersion"],
            "kind": profile["kind"],
            "metadata": {"name": "later"},
            "spec": {**profile["spec"], "default": False},
        }
    )
    _goes_on(running, "waits-profile")
    running.kubectl.run("delete", "acceleratorprofile", "later")


def test_job_waits_for_a_missing_secret_and_goes_on(running: Platform) -> None:
    _absent(running, "secret", "later-token")
    source = {
        "uri": "pvc://demo-assets/models/tiny",
        "credentialsSecretRef": {"name": "later-token"},
    }
    running.kubectl.apply(tiny_job("waits-secret", model=source))
    _stalled(running, "waits-secret", "SecretNotFound", "later-token")
    running.kubectl.run("create", "secret", "generic", "later-token", "--from-literal=HF_TOKEN=x")
    _goes_on(running, "waits-secret")


def test_job_waits_for_a_missing_claim_and_goes_on(running: Platform) -> None:
    _absent(running, "persistentvolumeclaim", "later-claim")
    source = {"uri": "pvc://later-claim/models/tiny"}
    running.kubectl.apply(tiny_job("waits-claim", model=source))
    _stalled(running, "waits-claim", "VolumeClaimNotFound", "later-claim")
    running.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "later-claim"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    # The new volume is empty, so the job continues until it looks for the model in it.
    found = wait_for_phase(running.kubectl, "waits-claim", "Failed", 120)
    assert found["status"]["failure"]["reason"] == "ModelNotFound"


QUOTA = {"kind": "ResourceQuota", "spec": {"hard": {"requests.cpu": "100m"}}}
SMALL_LIMITS = {"type": "Container", "default": {"memory": "512Mi"}}
LIMIT_RANGE = {"kind": "LimitRange", "spec": {"limits": [SMALL_LIMITS]}}


@pytest.mark.parametrize(
    ("name", "policy", "words"),
    [
        ("quota", QUOTA, "exceeded quota: later, requested: requests.cpu=500m"),
        pytest.param(
            "limit-range",
            LIMIT_RANGE,
            "must be less than or equal to memory limit of 512Mi",
            marks=pytest.mark.long,
        ),
    ],
)
def test_job_whose_pods_are_refused_waits_and_goes_on(
    running: Platform, name: str, policy: dict[str, Any], words: str
) -> None:
    _absent(running, policy["kind"], "later")
    running.kubectl.apply({"apiVersion": "v1", "metadata": {"name": "later"}, **policy})
    try:
        running.kubectl.apply(tiny_job(f"waits-{name}"))
        _stalled(running, f"waits-{name}", "PodsNotCreated", words)
    finally:
        running.kubectl.run("delete", policy["kind"], "later")
    _goes_on(running, f"waits-{name}")


def _absent(running: Platform, kind: str, name: str) -> None:
    """Remove what an earlier run may have left."""
    running.kubectl.run("delete", kind, name, "--ignore-not-found", "--wait")


def _stalled(running: Platform, name: str, reason: str, missing: str) -> None:
    def look() -> bool:
        stalled = condition(job(running.kubectl, name), "Stalled")
        return (stalled.get("status"), stalled.get("reason")) == ("True", reason)

    until(f"{name} to be Stalled for {reason}", 60, look)
    found = job(running.kubectl, name)
    assert missing in condition(found, "Stalled")["message"]
    assert missing in found["status"]["message"]
    assert found["status"]["phase"] not in ("Failed", "Succeeded")


def _goes_on(running: Platform, name: str) -> None:
    def look() -> bool:
        found = job(running.kubectl, name)
        stages = {stage["name"]: stage["state"] for stage in found["status"]["stages"]}
        return bool(stages["prepare"] == "Succeeded")

    until(f"{name} to have prepared", 120, look)
    assert condition(job(running.kubectl, name), "Stalled")["status"] == "False"
    running.kubectl.run("delete", "finetunejob", name)
    until(f"{name} to be gone", 30, lambda: gone(running.kubectl, "finetunejob", name))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training": {"epoch": 2}}, "spec.training.epoch"),
        ({"method": {"type": "QLora"}}, "spec.method.type"),
        ({"method": {"type": "AdaLoRA"}, "compute": {"strategy": "FSDP"}}, "spec.compute.strategy"),
    ],
)
def test_api_server_refuses_and_names_the_field(
    running: Platform, change: dict[str, object], named: str
) -> None:
    wrong = json.dumps(tiny_job("refused", **change))
    with pytest.raises(KubectlError, match=named.replace(".", r"\.")):
        running.kubectl.run("create", "--validate=strict", "-f", "-", stdin=wrong)
    assert gone(running.kubectl, "finetunejob", "refused")
    assert gone(running.kubectl, "job", "refused-prepare-1")
