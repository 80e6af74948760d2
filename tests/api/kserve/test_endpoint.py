"""ModelEndpoints on a cluster with KServe: its schema, its writes, and the operator's engine."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_operator.decision import Settings
from finetune_operator.endpoints.observe import parse_artifact
from finetune_operator.resources.inferenceservice import build_inference_service
from finetune_operator.resources.servingruntime import build_serving_runtime
from finetune_operator.resources.vllm import Artifact, ServedRevision

from tests.api.client import Api, ApiError, Manifest
from tests.api.kserve.drive import Operator
from tests.api.kserve.manager import KServeManager
from tests.api.kserve.model_server import ModelServer

NAME = "glossary"
PROFILE = "cpu"


def artifact(letter: str) -> dict[str, str]:
    return {
        "uri": f"pvc://finetune-workspace/artifacts/{letter}",
        "digest": "sha256:" + letter * 64,
    }


@pytest.fixture(scope="session")
def profile(api: Api) -> Manifest:
    """A profile that sets every field."""
    spec = {
        "default": True,
        "nodeSelector": {"pool": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "resourceName": "nvidia.com/gpu",
        "devicesPerNode": 8,
        "memoryPerDevice": "80Gi",
        "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        "serving": {"dtype": "bfloat16", "maxModelLen": 4096, "args": ["--max-num-seqs", "8"]},
    }
    return api.create(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "AcceleratorProfile",
            "metadata": {"name": PROFILE},
            "spec": spec,
        }
    )


@pytest.fixture
def endpoint(api: Api, namespace: str, profile: Manifest) -> Manifest:
    """An endpoint with a probe."""
    question = {"role": "user", "content": "What is a compiler?"}
    answer = "A compiler translates programs."
    return api.create(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "ModelEndpoint",
            "metadata": {"name": NAME, "namespace": namespace},
            "spec": {
                "artifact": artifact("a"),
                "probe": {"messages": [question], "answer": answer, "maxTokens": 16},
            },
        }
    )


def build_revision(endpoint: Manifest, profile: Manifest, gpus: int = 4) -> ServedRevision:
    found = parse_artifact(**artifact("a"))
    assert isinstance(found, Artifact)
    return ServedRevision(
        endpoint=endpoint,
        number=7,
        key="spec-pod",
        artifact=found,
        profile=AcceleratorProfile.model_validate({"name": PROFILE, "spec": profile["spec"]}),
        gpus=gpus,
        replicas=2,
        settings=Settings("trainer:v1", "vllm:v1", image_pull_secrets=("registry",)),
    )


def status(api: Api, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get("ModelEndpoint", namespace, NAME).get("status", {})
    return found


def condition(api: Api, namespace: str, kind: str) -> tuple[str, str]:
    every = status(api, namespace)["conditions"]
    found = next(each for each in every if each["type"] == kind)
    return found["status"], found["reason"]


def names(api: Api, kind: str, namespace: str) -> list[str]:
    return [each["metadata"]["name"] for each in api.list(kind, namespace)]


async def roll_out(operator: Operator, manager: KServeManager, child: str) -> None:
    """Let KServe start a revision, and the operator check it."""
    await operator.settle(NAME)
    manager.create_children(child)
    manager.start_loading(child)
    manager.make_pod_ready(child)
    manager.make_ready(child)
    await operator.settle(NAME)
    await operator.finish_checks(NAME)


def test_every_field_that_the_operator_writes_is_in_the_sdk(
    api: Api, endpoint: Manifest, profile: Manifest
) -> None:
    revision = build_revision(endpoint, profile)
    sent = [build_serving_runtime(revision), build_inference_service(revision)]
    for manifest in sent:
        stored = api.create(manifest)
        assert stored["spec"] == manifest["spec"], "nothing was pruned"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("isvc", ("predictor", "autoscalerClass"), "none"),
        ("isvc", ("predictor", "model", "storageUrl"), "pvc://a/b"),
        ("isvc", ("predictor", "model", "args"), "--one-string"),
        ("runtime", ("containers", 0, "mounts"), []),
    ],
)
def test_the_schema_rejects_fields_that_are_not_in_the_sdk(
    api: Api, endpoint: Manifest, profile: Manifest, kind: str, path: tuple[Any, ...], value: Any
) -> None:
    revision = build_revision(endpoint, profile)
    manifest = (
        build_inference_service(revision) if kind == "isvc" else build_serving_runtime(revision)
    )
    place = manifest["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ApiError, match=str(path[-1])):
        api.create(manifest)


async def test_an_endpoint_is_ready_only_after_kserve_is_ready_and_the_checks_passed(
    api: Api,
    operator: Operator,
    manager: KServeManager,
    server: ModelServer,
    endpoint: Manifest,
    namespace: str,
) -> None:
    await operator.settle(NAME)
    assert names(api, "InferenceService", namespace) == ["glossary-r1"]
    assert names(api, "Deployment", namespace) == []
    runtime = manager.get_inference_service("glossary-r1")["spec"]["predictor"]["model"]["runtime"]
    assert names(api, "ServingRuntime", namespace) == [runtime]
    for step in (manager.create_children, manager.start_loading, manager.make_pod_ready):
        step("glossary-r1")
        await operator.settle(NAME)
        assert status(api, namespace)["phase"] == "Deploying"
        assert status(api, namespace)["revisions"][0]["state"] == "Starting"
        assert NAME not in names(api, "Service", namespace)
        assert server.chat_requests == []
    manager.make_ready("glossary-r1")
    await operator.settle(NAME)
    await operator.finish_checks(NAME)
    assert server.chat_requests[0]["temperature"] == 0
    assert status(api, namespace)["phase"] == "Ready"
    assert status(api, namespace)["runtime"] == "KServe"
    assert status(api, namespace)["url"] == f"http://{NAME}.{namespace}.svc/v1"
    assert condition(api, namespace, "Ready") == ("True", "RevisionActive")
    pointer = api.get("Service", namespace, NAME)
    pod = api.get("Pod", namespace, "glossary-r1-predictor-0")
    assert pointer["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pointer["spec"]["ports"][0]["targetPort"] == 8080


async def test_a_ready_condition_without_a_ready_pod_does_not_start_the_checks(
    api: Api, operator: Operator, manager: KServeManager, endpoint: Manifest, namespace: str
) -> None:
    await operator.settle(NAME)
    manager.create_children("glossary-r1")
    manager.start_loading("glossary-r1")
    manager.make_ready("glossary-r1")  # Ready, but the pod is not
    await operator.settle(NAME)
    assert status(api, namespace)["revisions"][0]["state"] == "Starting"


@pytest.mark.parametrize(
    ("transition", "state", "reason"),
    [
        ("InProgress", "FailedToLoad", "FailedToLoad"),
        ("BlockedByFailedLoad", "FailedToLoad", "BlockedByFailedLoad"),
    ],
)
async def test_a_model_that_does_not_load_fails_with_the_message_of_kserve(
    api: Api,
    operator: Operator,
    manager: KServeManager,
    endpoint: Manifest,
    namespace: str,
    transition: str,
    state: str,
    reason: str,
) -> None:
    await operator.settle(NAME)
    manager.create_children("glossary-r1")
    manager.start_loading("glossary-r1")
    error = "ValueError: unknown architecture"
    manager.fail_loading("glossary-r1", transition, state, "ModelLoadFailed", error)
    await operator.settle(NAME)
    retry_at = status(api, namespace)["revisions"][0]["retryAt"]
    assert status(api, namespace)["message"] == (
        f"revision 1 failed: {reason}: KServe: ModelLoadFailed: {error}; next try at {retry_at}"
    )
    assert condition(api, namespace, "Reconciling") == ("True", reason)
    assert names(api, "InferenceService", namespace) == []
    assert names(api, "ServingRuntime", namespace) == []
    operator.ahead = timedelta(seconds=61)
    await operator.settle(NAME)
    assert names(api, "InferenceService", namespace) == ["glossary-r2"]


async def test_an_invalid_spec_is_a_failure_only_after_a_grace_period(
    api: Api, operator: Operator, manager: KServeManager, endpoint: Manifest, namespace: str
) -> None:
    await operator.settle(NAME)
    manager.fail_loading(
        "glossary-r1", "InvalidSpec", "", "RuntimeNotRecognized", "no such runtime"
    )
    await operator.settle(NAME)
    assert status(api, namespace)["revisions"][0]["state"] == "Starting"
    operator.ahead = timedelta(seconds=31)
    await operator.settle(NAME)
    assert condition(api, namespace, "Stalled") == ("True", "InvalidSpec")


async def test_an_update_runs_alongside_the_old_revision_and_takes_over(
    api: Api, operator: Operator, manager: KServeManager, endpoint: Manifest, namespace: str
) -> None:
    await roll_out(operator, manager, "glossary-r1")
    api.patch("ModelEndpoint", namespace, NAME, {"spec": {"artifact": artifact("b")}})
    await operator.settle(NAME)
    assert names(api, "InferenceService", namespace) == ["glossary-r1", "glossary-r2"]
    before = api.get("Service", namespace, NAME)
    assert before["spec"]["selector"] == {"app": "isvc.glossary-r1-predictor"}
    await roll_out(operator, manager, "glossary-r2")
    after = api.get("Service", namespace, NAME)
    assert after["spec"]["selector"] == {"app": "isvc.glossary-r2-predictor"}
    assert after["spec"]["clusterIP"] == before["spec"]["clusterIP"]
    operator.ahead = timedelta(seconds=31)
    await operator.settle(NAME)
    assert names(api, "InferenceService", namespace) == ["glossary-r2"]
    assert len(names(api, "ServingRuntime", namespace)) == 1


async def test_a_wrong_answer_keeps_the_old_revision(
    api: Api,
    operator: Operator,
    manager: KServeManager,
    server: ModelServer,
    endpoint: Manifest,
    namespace: str,
) -> None:
    await roll_out(operator, manager, "glossary-r1")
    api.patch("ModelEndpoint", namespace, NAME, {"spec": {"artifact": artifact("b")}})
    server.answer_text = "Something else."
    await roll_out(operator, manager, "glossary-r2")
    assert condition(api, namespace, "Stalled") == ("True", "ParityMismatch")
    assert condition(api, namespace, "Ready") == ("True", "RevisionActive")
    pointer = api.get("Service", namespace, NAME)
    assert pointer["spec"]["selector"] == {"app": "isvc.glossary-r1-predictor"}


async def test_a_stopped_inference_service_is_not_ready_until_it_is_started_again(
    api: Api, operator: Operator, manager: KServeManager, endpoint: Manifest, namespace: str
) -> None:
    await roll_out(operator, manager, "glossary-r1")
    annotations = {"serving.kserve.io/stop": "true"}
    api.patch(
        "InferenceService", namespace, "glossary-r1", {"metadata": {"annotations": annotations}}
    )
    manager.stop("glossary-r1")
    await operator.settle(NAME)
    assert condition(api, namespace, "Ready") == ("False", "PodsNotReady")
    annotations["serving.kserve.io/stop"] = "false"
    api.patch(
        "InferenceService", namespace, "glossary-r1", {"metadata": {"annotations": annotations}}
    )
    for step in (
        manager.create_children,
        manager.start_loading,
        manager.make_pod_ready,
        manager.make_ready,
    ):
        step("glossary-r1")
    await operator.settle(NAME)
    assert condition(api, namespace, "Ready") == ("True", "RevisionActive")


async def test_a_change_of_replicas_applies_no_other_field(
    api: Api, operator: Operator, manager: KServeManager, endpoint: Manifest, namespace: str
) -> None:
    await roll_out(operator, manager, "glossary-r1")
    before = manager.get_inference_service("glossary-r1")["spec"]["predictor"]
    api.patch("ModelEndpoint", namespace, NAME, {"spec": {"replicas": 3}})
    await operator.settle(NAME)
    after = manager.get_inference_service("glossary-r1")["spec"]["predictor"]
    assert after == before | {"minReplicas": 3, "maxReplicas": 3}
    assert status(api, namespace)["revisions"][-1]["revision"] == 1
