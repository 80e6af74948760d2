"""What the options of a pool, of the chart and of a job change in pods, and in which."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfile, AcceleratorProfileSpec, CpuPods
from finetune_api.protocol import NODE_NAME_ENV, RENDEZVOUS_PORT, TELEMETRY_PORT
from finetune_operator.decision import Manifest, Settings
from finetune_operator.endpoints.observe import parse_artifact
from finetune_operator.resources.deployment import build_deployment
from finetune_operator.resources.inferenceservice import build_inference_service
from finetune_operator.resources.janitor import KEEP_ANNOTATION, build_janitor_job
from finetune_operator.resources.resource_requirements import build_training_resources
from finetune_operator.resources.vllm import Artifact, ServedRevision

from tests.unit.endpoints.world import artifact, endpoint
from tests.unit.jobs.world import CPU_PROFILE, SETTINGS, START, World, job_manifest

GPUS = {**CPU_PROFILE, "resourceName": "nvidia.com/gpu"}
WITH_DEVICES = ["train", "evaluate"]
WITHOUT_DEVICES = ["prepare", "export"]
STAGES = ["prepare", "train", "evaluate", "export"]


def build_templates(
    pool: dict[str, Any],
    cpu_pods: dict[str, Any] | None = None,
    architecture: str | None = None,
    **spec: Any,
) -> dict[str, Manifest]:
    """The pod templates of every stage of a job, and of the janitor."""
    pods = CpuPods.model_validate(cpu_pods or {})
    settings = replace(SETTINGS, cpu_pods=pods, architecture=architecture)
    world = World(job_manifest(**spec))
    world.settings = settings
    world.add_profile("cpu", {**GPUS, **pool})
    world.run_until("export")
    jobs = {stage: world.need("Job", f"glossary-{stage}-1") for stage in STAGES}
    jobs["janitor"] = build_janitor_job("n", "uid", [], frozenset(), START, settings)
    return {name: job["spec"]["template"] for name, job in jobs.items()}


def build_served(**pool: Any) -> ServedRevision:
    """A revision that is served on the pool."""
    found = parse_artifact(**artifact("a"))
    assert isinstance(found, Artifact)
    return ServedRevision(
        endpoint=endpoint(),
        number=1,
        key="spec-pod",
        artifact=found,
        profile=AcceleratorProfile.model_validate({"name": "h100", "spec": {**GPUS, **pool}}),
        gpus=1,
        replicas=1,
        settings=Settings(trainer_image="trainer:v1", serving_image="vllm:v1"),
    )


def build_serving_pods(served: ServedRevision) -> list[Manifest]:
    """The pod of a revision as the Deployment has it, and as KServe gets it."""
    deployment = build_deployment(served)["spec"]["template"]["spec"]
    return [deployment, build_inference_service(served)["spec"]["predictor"]]


def container_of(template: Manifest) -> Manifest:
    """The only container of a pod template."""
    (container,) = template["spec"]["containers"]
    return dict(container)


def env_of(template: Manifest) -> dict[str, Any]:
    """The environment of a pod template's container: values, or where they come from."""
    variables = container_of(template).get("env", ())
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in variables}


PROXY = {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}


def test_every_pod_gets_the_environment_of_its_own_pool() -> None:
    mirror = {"name": "HF_ENDPOINT", "value": "https://hub.example"}
    templates = build_templates({"env": [PROXY]}, {"env": [mirror]})
    for stage in WITH_DEVICES:
        assert env_of(templates[stage])["HTTPS_PROXY"] == "http://proxy:3128"
        assert "HF_ENDPOINT" not in env_of(templates[stage])
    for name in (*WITHOUT_DEVICES, "janitor"):
        assert env_of(templates[name])["HF_ENDPOINT"] == "https://hub.example"
        assert "HTTPS_PROXY" not in env_of(templates[name])
    assert env_of(build_deployment(build_served(env=[PROXY]))["spec"]["template"]).keys() >= {
        "HTTPS_PROXY"
    }


def test_only_training_pods_request_the_extra_resources() -> None:
    extra = {"rdma/hca": "1", "hugepages-2Mi": "512Mi"}
    templates = build_templates({"extraResources": extra, "devicesPerNode": 4})
    resources = {name: container_of(each)["resources"] for name, each in templates.items()}
    training = resources.pop("train")
    assert training["requests"].items() >= extra.items()
    assert training["limits"].items() >= extra.items()
    served = build_served(extraResources=extra)
    resources["served"] = container_of(build_deployment(served)["spec"]["template"])["resources"]
    predictor = build_inference_service(served)["spec"]["predictor"]
    resources["kserve"] = predictor["model"]["resources"]
    for each in resources.values():
        assert not each["requests"].keys() & extra.keys()


def test_a_cpu_pool_limits_its_extra_resources_alone() -> None:
    spec = AcceleratorProfileSpec.model_validate({**CPU_PROFILE, "extraResources": {"rdma/x": "1"}})
    assert build_training_resources(spec, 2)["limits"] == {"rdma/x": "1"}


def test_only_training_pods_use_the_host_network_and_reserve_their_ports_there() -> None:
    templates = build_templates({"hostNetwork": True})
    pod = templates.pop("train")
    assert pod["spec"]["hostNetwork"] is True
    assert pod["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"
    ports = {each["name"]: each for each in container_of(pod)["ports"]}
    assert {name: each["containerPort"] for name, each in ports.items()} == {
        "telemetry": TELEMETRY_PORT,
        "rendezvous": RENDEZVOUS_PORT,
    }
    assert all(each["hostPort"] == each["containerPort"] for each in ports.values())
    assert env_of(pod)[NODE_NAME_ENV] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    served = build_served(hostNetwork=True)
    templates["served"] = build_deployment(served)["spec"]["template"]
    templates["kserve"] = {"spec": build_inference_service(served)["spec"]["predictor"]}
    for template in templates.values():
        assert not {"hostNetwork", "dnsPolicy"} & template["spec"].keys()


def test_pods_on_the_network_of_pods_have_neither_a_port_nor_the_name_of_the_node() -> None:
    template = build_templates({})["train"]
    (port,) = container_of(template)["ports"]
    assert "hostPort" not in port
    assert NODE_NAME_ENV not in env_of(template)


CLASSES = {"runtimeClassName": "kata", "priorityClassName": "batch"}


def find_classes(fields: Manifest) -> dict[str, str]:
    """The classes that a pod's spec names."""
    return {name: fields[name] for name in CLASSES if name in fields}


def test_every_pod_of_a_pool_has_its_classes() -> None:
    templates = build_templates(CLASSES)
    for stage in STAGES:
        expected = CLASSES if stage in WITH_DEVICES else {}
        assert find_classes(templates[stage]["spec"]) == expected
    served = build_served(**CLASSES)
    assert find_classes(build_deployment(served)["spec"]["template"]["spec"]) == CLASSES
    assert find_classes(build_inference_service(served)["spec"]["predictor"]) == CLASSES


def test_pods_without_devices_have_the_classes_of_the_chart() -> None:
    templates = build_templates({}, CLASSES)
    for name, template in templates.items():
        expected = {} if name in WITH_DEVICES else CLASSES
        assert find_classes(template["spec"]) == expected


METADATA = {"labels": {"cost": "ml"}, "annotations": {"sidecar.istio.io/inject": "false"}}


def has_metadata(template: Manifest) -> bool:
    """Whether a pod has the labels and annotations of METADATA in addition to its own."""
    labels = template["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "finetune-operator"
    annotations = template["metadata"].get("annotations", {})
    return (labels.get("cost"), annotations.get("sidecar.istio.io/inject")) == ("ml", "false")


def test_every_pod_of_a_pool_has_its_labels_and_annotations() -> None:
    templates = build_templates({"podMetadata": METADATA})
    assert {name for name, each in templates.items() if has_metadata(each)} == {*WITH_DEVICES}
    served = build_served(podMetadata=METADATA)
    assert has_metadata(build_deployment(served)["spec"]["template"])
    predictor = build_inference_service(served)["spec"]["predictor"]
    assert has_metadata({"metadata": predictor})


def test_pods_without_devices_have_the_labels_and_annotations_of_the_chart() -> None:
    templates = build_templates({}, {"podMetadata": METADATA})
    found = {name for name, each in templates.items() if has_metadata(each)}
    assert found == {*WITHOUT_DEVICES, "janitor"}
    assert KEEP_ANNOTATION in templates["janitor"]["metadata"]["annotations"]


def test_labels_of_pods_are_not_those_of_their_job_or_deployment() -> None:
    """The Deployment's selector cannot change, and Kueue reads the labels of the Job."""
    deployment = build_deployment(build_served(podMetadata=METADATA))
    assert "cost" not in deployment["metadata"]["labels"]
    assert "cost" not in deployment["spec"]["selector"]["matchLabels"]


def test_the_priority_of_a_job_wins_over_that_of_its_pools() -> None:
    templates = build_templates(CLASSES, CLASSES, priorityClassName="urgent")
    for stage in STAGES:
        assert templates[stage]["spec"]["priorityClassName"] == "urgent"
        assert templates[stage]["spec"]["runtimeClassName"] == "kata"
    assert templates["janitor"]["spec"]["priorityClassName"] == "batch"


def test_labels_and_annotations_are_merged_and_those_of_the_pool_win() -> None:
    own = {"labels": {"cost": "mine", "owner": "ada"}, "annotations": {"owner": "ada"}}
    templates = build_templates(
        {"podMetadata": METADATA}, {"podMetadata": METADATA}, podMetadata=own
    )
    for stage in STAGES:
        assert has_metadata(templates[stage])
        assert templates[stage]["metadata"]["labels"]["owner"] == "ada"
        assert templates[stage]["metadata"]["annotations"]["owner"] == "ada"
    assert "owner" not in templates["janitor"]["metadata"]["labels"]


ARM64 = {"kubernetes.io/arch": "arm64"}


def test_every_pod_runs_on_nodes_for_which_the_images_are_built() -> None:
    selector = {"kubernetes.io/arch": "amd64"}
    templates = build_templates({}, architecture="amd64")
    assert all(each["spec"]["nodeSelector"] == selector for each in templates.values())
    settings = replace(SETTINGS, architecture="amd64")
    for pod in build_serving_pods(replace(build_served(), settings=settings)):
        assert pod["nodeSelector"] == selector


def test_a_pool_can_select_another_architecture_and_other_labels() -> None:
    pool = {"nodeSelector": {**ARM64, "pool": "gh200"}}
    templates = build_templates(pool, {"nodeSelector": {"pool": "cpu"}}, architecture="amd64")
    for stage in WITH_DEVICES:
        assert templates[stage]["spec"]["nodeSelector"] == pool["nodeSelector"]
    for name in [*WITHOUT_DEVICES, "janitor"]:
        selector = {"kubernetes.io/arch": "amd64", "pool": "cpu"}
        assert templates[name]["spec"]["nodeSelector"] == selector
    settings = replace(SETTINGS, architecture="amd64")
    for pod in build_serving_pods(replace(build_served(**pool), settings=settings)):
        assert pod["nodeSelector"] == pool["nodeSelector"]


def test_images_of_every_architecture_run_anywhere() -> None:
    templates = build_templates({})
    assert not any("nodeSelector" in each["spec"] for each in templates.values())
