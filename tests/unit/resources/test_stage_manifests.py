"""The children that the operator creates for a job, stage by stage."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.acceleratorprofile import CpuPods, Limits
from finetune_operator.decision import (
    HASH_ANNOTATION,
    JOB_UID_LABEL,
    MANAGED_BY_LABEL,
    Manifest,
    Settings,
)
from finetune_operator.jobs.plan import reconcile_job
from finetune_operator.resources.janitor import build_janitor_job, build_ledger
from finetune_operator.resources.resource_requirements import (
    build_device_resources,
    build_host_requests,
    build_host_resources,
)
from finetune_operator.resources.scheduling import LOST_NODE_TAINTS
from finetune_operator.resources.workspace_pvc import build_workspace_pvc

from tests.unit.jobs.world import JOB_UID, NAMESPACE, SETTINGS, START, World, job_manifest
from tests.unit.planner.facts import H100
from tests.unit.resources.golden import assert_golden

STAGES = ["prepare", "train", "evaluate", "export"]
CREDENTIALS = {
    "model": {
        "uri": "hf://org/smol",
        "revision": "v1",
        "credentialsSecretRef": {"name": "hf-token"},
    },
    "dataset": {
        "train": [{"uri": "s3://bucket/train.jsonl", "credentialsSecretRef": {"name": "s3-keys"}}],
        "validation": {
            "uri": "pvc://held-out/eval.jsonl",
            "credentialsSecretRef": {"name": "s3-keys"},
        },
    },
}
GPU_POOL = {
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "resourceName": "nvidia.com/gpu",
    "devicesPerNode": 8,
    "memoryPerDevice": "79Gi",
    "cpuPerDevice": "20",
    "hostMemoryPerDevice": "180Gi",
    "sharedMemory": "64Gi",
    "collectiveTimeoutSeconds": 1800,
    "env": [{"name": "NCCL_IB_HCA", "value": "mlx5"}],
}


def build_children(stage: str, job: Manifest, pool: dict[str, Any] | None = None) -> list[Manifest]:
    """The children of the first attempt of a stage."""
    world = World(job)
    world.add_claim("held-out")
    if pool is not None:
        world.add_profile("cpu", pool)
    world.run_until(stage)
    found = [
        world.get(k, NAMESPACE, f"glossary-{stage}-1") for k in ("ConfigMap", "Service", "Job")
    ]
    out = []
    for child in found:
        if child is not None:
            bare = copy.deepcopy(child)
            for field in ("uid", "creationTimestamp", "generation", "resourceVersion"):
                bare["metadata"].pop(field, None)
            out.append(bare)
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_children_on_a_cpu_pool_equal_their_golden_file(stage: str) -> None:
    assert_golden(f"cpu-{stage}", *build_children(stage, job_manifest()))


@pytest.mark.parametrize("stage", STAGES)
def test_children_on_a_gpu_pool_with_credentials_equal_their_golden_file(stage: str) -> None:
    assert_golden(f"gpu-{stage}", *build_children(stage, job_manifest(**CREDENTIALS), GPU_POOL))


def test_the_workspace_claim_equals_its_golden_file() -> None:
    settings = Settings("t", "s", workspace_size="1Ti", workspace_storage_class="nfs")
    assert_golden("workspace-claim", build_workspace_pvc(NAMESPACE, settings))


def test_janitor_and_ledger_equal_their_golden_file() -> None:
    keep = ["jobs/1b4e28ba", "artifacts/older-0a0a0a0a", "models/0123456789abcdef"]
    job = build_janitor_job(NAMESPACE, "claim-uid", keep, {"jobs/0badcafe"}, START, SETTINGS)
    assert_golden("janitor", job, build_ledger(NAMESPACE, keep[:2]))


def clear(value: Any) -> None:
    """Empty every dict and list, innermost first."""
    if isinstance(value, dict | list):
        for each in list(value.values() if isinstance(value, dict) else value):
            clear(each)
        value.clear()


def test_a_manifest_shares_nothing_with_the_next_one() -> None:
    world = World()

    def build_job() -> Manifest:
        decision = reconcile_job(world.job, world, SETTINGS, START)
        return next(each for each in decision.create if each["kind"] == "Job")

    expected = copy.deepcopy(build_job())
    clear(build_job())
    assert build_job() == expected


def build_every_child() -> Iterator[Manifest]:
    for stage in STAGES:
        yield from build_children(stage, job_manifest())
        yield from build_children(stage, job_manifest(**CREDENTIALS), GPU_POOL)


def test_every_child_is_owned_labelled_and_hashed() -> None:
    for child in build_every_child():
        meta = child["metadata"]
        assert meta["labels"][MANAGED_BY_LABEL] == "finetune-operator"
        assert meta["labels"][JOB_UID_LABEL] == JOB_UID
        assert len(meta["annotations"][HASH_ANNOTATION]) >= 16
        (owner,) = meta["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("FineTuneJob", JOB_UID)
        assert owner["controller"]
        assert owner["blockOwnerDeletion"]


def test_every_pod_fits_the_restricted_standard_and_has_no_token() -> None:
    pods = [c["spec"]["template"]["spec"] for c in build_every_child() if c["kind"] == "Job"]
    pods.append(
        build_janitor_job("n", "uid", [], frozenset(), START, SETTINGS)["spec"]["template"]["spec"]
    )
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        ids = {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")}
        assert ids == {65532}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
        kinds = {next(k for k in volume if k != "name") for volume in pod["volumes"]}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "downwardAPI"}


def _pod_of(stage: str, **changes: Any) -> Manifest:
    pool = changes.pop("pool", None)
    job = build_children(stage, job_manifest(**changes), pool)[-1]
    return dict(job["spec"]["template"]["spec"])


def test_only_prepare_gets_secrets_claims_and_the_network() -> None:
    for stage in STAGES:
        pod = _pod_of(stage, **CREDENTIALS)
        (container,) = pod["containers"]
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        paths = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        if stage == "prepare":
            prefixes = [source["prefix"] for source in container["envFrom"]]
            assert prefixes == [
                "FINETUNE_SECRET_MODEL_",
                "FINETUNE_SECRET_DATA_0_",
                "FINETUNE_SECRET_VALIDATION_",
            ]
            assert "HF_HUB_OFFLINE" not in env
            assert paths["/pvc/held-out"]["readOnly"]
            assert "readOnly" not in paths["/workspace/model"]
        else:
            assert "envFrom" not in container
            assert env["HF_HUB_OFFLINE"] == "1"
            assert not any(path.startswith("/pvc") for path in paths)
            assert paths["/workspace/model"]["readOnly"]
        assert ("/workspace/artifact" in paths) == (stage == "export")
        assert paths["/workspace/job"]["subPath"] == f"jobs/{JOB_UID}"


MIXTURE = {
    "objective": "GRPO",
    "grpo": {
        "rewardModel": {"uri": "pvc://judges/one", "credentialsSecretRef": {"name": "judge-keys"}}
    },
    "dataset": {
        "train": [
            {"uri": "s3://one/rows.jsonl", "credentialsSecretRef": {"name": "keys-of-one"}},
            {"uri": "pvc://two/rows.jsonl"},
            {"uri": "s3://three/rows.jsonl", "credentialsSecretRef": {"name": "keys-of-three"}},
        ]
    },
}


def test_every_source_of_a_mixture_gets_its_own_secret() -> None:
    world = World(job_manifest(**MIXTURE))
    for claim in ("two", "judges"):
        world.add_claim(claim)
    world.run_until("prepare")
    job = world.get("Job", NAMESPACE, "glossary-prepare-1")
    assert job is not None
    (container,) = job["spec"]["template"]["spec"]["containers"]
    seen = {each["prefix"]: each["secretRef"]["name"] for each in container["envFrom"]}
    assert seen == {
        "FINETUNE_SECRET_DATA_0_": "keys-of-one",
        "FINETUNE_SECRET_DATA_2_": "keys-of-three",
        "FINETUNE_SECRET_REWARD_": "judge-keys",
    }
    paths = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert paths["/pvc/two"]["readOnly"]
    assert paths["/pvc/judges"]["readOnly"]
    assert "readOnly" not in paths["/workspace/reward"]


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_stages_that_score_mount_the_reward_model_read_only(stage: str) -> None:
    world = World(job_manifest(**MIXTURE))
    for claim in ("two", "judges"):
        world.add_claim(claim)
    world.run_until(stage)
    job = world.get("Job", NAMESPACE, f"glossary-{stage}-1")
    assert job is not None
    (container,) = job["spec"]["template"]["spec"]["containers"]
    paths = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert paths["/workspace/reward"]["readOnly"]
    assert paths["/workspace/reward"]["subPath"].startswith("models/")
    assert paths["/workspace/reward"]["subPath"] != paths["/workspace/model"]["subPath"]


def test_only_jobs_that_name_the_same_model_share_its_folder() -> None:
    one, other = (
        _pod_of("prepare", **CREDENTIALS),
        _pod_of("prepare", dataset=CREDENTIALS["dataset"]),
    )
    paths = [
        {m["mountPath"]: m.get("subPath") for m in pod["containers"][0]["volumeMounts"]}
        for pod in (one, other)
    ]
    assert paths[0]["/workspace/model"] != paths[1]["/workspace/model"]
    assert str(paths[0]["/workspace/model"]).startswith("models/")


def test_a_gang_of_two_runs_on_two_nodes_and_finds_index_0() -> None:
    pod = _pod_of("train")
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    assert spread["minDomains"] == 2
    assert spread["labelSelector"]["matchLabels"]["finetune.dev/attempt"] == "1"
    assert pod["subdomain"] == "glossary-train-1"
    assert pod["terminationGracePeriodSeconds"] == 120
    env = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    assert env["OMP_NUM_THREADS"] == "1"


def test_a_gang_of_one_has_no_topology_spread() -> None:
    assert "topologySpreadConstraints" not in _pod_of("train", compute={"profile": "cpu"})


def test_one_failed_pod_fails_the_gang() -> None:
    job = build_children("train", job_manifest())[-1]
    assert job["spec"]["backoffLimit"] == 0
    assert "podFailurePolicy" not in job["spec"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)


def test_accelerator_pools_have_limits_and_cpu_pools_have_none() -> None:
    gpu = build_device_resources(H100, 4)
    assert gpu["limits"]["nvidia.com/gpu"] == gpu["requests"]["nvidia.com/gpu"] == "4"
    assert gpu["limits"]["memory"] == gpu["requests"]["memory"] == "720Gi"
    assert "cpu" not in gpu["limits"]
    cpu = build_device_resources(H100.model_copy(update={"resource_name": None}), 2)
    assert cpu == {"requests": {"cpu": "8", "memory": "360Gi"}}


@pytest.mark.parametrize(
    ("resource", "limits", "expected"),
    [
        (None, {"cpu": "6"}, {"cpu": "12"}),
        (None, {"cpu": "4500m", "memory": "200Gi"}, {"cpu": "9000m", "memory": "400Gi"}),
        ("x.y/gpu", {"cpu": "6"}, {"cpu": "12", "memory": "360Gi", "x.y/gpu": "2"}),
        ("x.y/gpu", {"memory": "190Gi"}, {"memory": "380Gi", "x.y/gpu": "2"}),
    ],
)
def test_a_pool_can_have_limits(
    resource: str | None, limits: dict[str, str], expected: dict[str, str]
) -> None:
    changes = {"resource_name": resource, "limits_per_device": Limits.model_validate(limits)}
    found = build_device_resources(H100.model_copy(update=changes), 2)
    assert found["limits"] == expected
    assert found["requests"]["cpu"] == "8"


def test_pods_without_devices_can_have_limits_which_are_never_below_their_requests() -> None:
    limits = Limits.model_validate({"cpu": "250m", "memory": "8Gi"})
    small = build_host_resources(build_host_requests(2**30), limits)
    assert small == {
        "requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"cpu": "500m", "memory": "8Gi"},
    }
    large = build_host_resources(build_host_requests(140 * 10**9), limits)
    assert large["limits"]["memory"] == large["requests"]["memory"] == "131Gi"
    settings = replace(SETTINGS, cpu_pods=CpuPods(limits=limits))
    world = World()
    world.settings = settings
    world.run_until("serve")
    for stage in ("prepare", "export"):
        assert world.container(stage)["resources"]["limits"]["memory"] == "8Gi"
    assert "limits" not in world.container("train")["resources"]
    janitor = build_janitor_job("n", "uid", [], frozenset(), START, settings)
    (container,) = janitor["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "250m", "memory": "8Gi"}


def test_stages_without_devices_run_anywhere_with_memory_for_the_weights() -> None:
    for stage in ("prepare", "export"):
        pod = _pod_of(stage, **CREDENTIALS, pool=GPU_POOL)
        assert "nodeSelector" not in pod
        assert {each["key"] for each in pod["tolerations"]} == set(LOST_NODE_TAINTS)
        assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["requests"]
    assert build_host_requests(16 * 2**30 + 1)["memory"] == "17Gi"


def test_the_cluster_can_assign_users_and_groups() -> None:
    """OpenShift's restricted-v2 refuses pods that name a user outside the namespace's range."""
    settings = replace(SETTINGS, user_id=None)
    world = World()
    made = reconcile_job(world.job, world, settings, world.now).create
    jobs = [made[-1], build_janitor_job("n", "uid", [], frozenset(), START, settings)]
    for pod in (job["spec"]["template"]["spec"] for job in jobs):
        assert pod["securityContext"].keys() == {"runAsNonRoot", "seccompProfile"}


def test_pods_without_devices_run_where_the_chart_says() -> None:
    toleration = {"key": "cpu", "operator": "Exists"}
    pool = CpuPods.model_validate({"nodeSelector": {"pool": "cpu"}, "tolerations": [toleration]})
    settings = replace(SETTINGS, cpu_pods=pool)
    world = World()
    made = reconcile_job(world.job, world, settings, world.now).create
    jobs = [made[-1], build_janitor_job("n", "uid", [], frozenset(), START, settings)]
    for pod in (job["spec"]["template"]["spec"] for job in jobs):
        assert pod["nodeSelector"] == {"pool": "cpu"}
        assert pod["tolerations"][0] == toleration


def test_pods_of_a_lost_node_are_given_up_after_half_a_minute() -> None:
    for stage in ("prepare", "train"):
        found = _pod_of(stage, **CREDENTIALS, pool=GPU_POOL)["tolerations"]
        lost = [each for each in found if each["key"] in LOST_NODE_TAINTS]
        assert [each["key"] for each in lost] == list(LOST_NODE_TAINTS)
        assert {(each["effect"], each["tolerationSeconds"]) for each in lost} == {("NoExecute", 30)}


@pytest.mark.parametrize("key", [LOST_NODE_TAINTS[0], None])
def test_a_profile_that_tolerates_lost_nodes_wins(key: str | None) -> None:
    own = {"operator": "Exists", **({"key": key} if key else {})}
    pod = _pod_of("train", **CREDENTIALS, pool={**GPU_POOL, "tolerations": [own]})
    lost = [each["key"] for each in pod["tolerations"] if "tolerationSeconds" in each]
    assert lost == ([LOST_NODE_TAINTS[1]] if key else [])


def test_the_same_view_gives_the_same_decision() -> None:
    world = World()
    first = reconcile_job(world.job, world, SETTINGS, world.now)
    assert first == reconcile_job(world.job, world, SETTINGS, world.now)


def test_settings_reach_every_pod() -> None:
    settings = Settings(
        trainer_image="mirror/trainer@sha256:1",
        serving_image="s",
        image_pull_policy="Always",
        image_pull_secrets=("mirror",),
        trainer_service_account="trainer",
        workspace_claim="shared",
    )
    world = World()
    made = reconcile_job(world.job, world, settings, world.now).create
    pods = [made[-1], build_janitor_job("n", "uid", [], frozenset(), START, settings)]
    for pod in (job["spec"]["template"]["spec"] for job in pods):
        assert pod["serviceAccountName"] == "trainer"
        assert pod["imagePullSecrets"] == [{"name": "mirror"}]
        assert pod["containers"][0]["image"] == "mirror/trainer@sha256:1"
        assert pod["containers"][0]["imagePullPolicy"] == "Always"
        claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]]
        assert "shared" in claims
