"""The pod of a stage: its command, its mounts of the workspace, its limits.

A pod mounts only its own folders, each by subPath: a job can neither read another job's data nor
write the shared base model outside prepare. It has no API token. Only prepare gets the Secrets that
the job names, because prepare runs no code that came with the data; train gets the keys of its
experiment trackers and nothing else of their Secret. The ServiceAccount that the job names follows
the same rule.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.pod_options import PodMetadata
from finetune_api.protocol import (
    CLOUD_IDENTITY_ENV,
    COLLECTIVE_TIMEOUT_ENV,
    NODE_NAME_ENV,
    RENDEZVOUS_PORT,
    RENDEZVOUS_TIMEOUT_ENV,
    RUN_CONFIG_PATH,
    TELEMETRY_PORT,
    TERMINATION_PATH,
)
from finetune_api.run_config import Paths

from finetune_operator.decision import Manifest, Settings
from finetune_operator.resources.configmap import RUN_FILE
from finetune_operator.resources.environment import build_pool_environment
from finetune_operator.resources.metadata import AttemptMetadata
from finetune_operator.resources.scheduling import build_pull_secrets, build_scheduling
from finetune_operator.resources.security_context import (
    CONTAINER_SECURITY_CONTEXT,
    build_pod_security_context,
)

WORKSPACE_VOLUME = "workspace"
CONTAINER = "trainer"
GRACE_SECONDS = 30
"""Time between SIGTERM and SIGKILL for stages that have nothing to save."""

RENDEZVOUS_MARGIN = 300.0
"""Seconds that ranks wait for each other beyond the time that a scale-up may take."""

_NODE_NAME: Manifest = {
    "name": NODE_NAME_ENV,
    "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
}
"""By which a rank on the host network reports its host; the kernel's host name may be another."""


@dataclass(frozen=True)
class Mount:
    """A folder of the workspace that the pod mounts."""

    path: str
    sub_path: str
    is_read_only: bool = False


@dataclass(frozen=True)
class SecretEnv:
    """A Secret of the job's namespace whose keys become environment variables with a prefix."""

    name: str
    prefix: str


@dataclass(frozen=True)
class SecretKey:
    """One key of a Secret that becomes the environment variable of the same name."""

    secret: str
    key: str
    is_required: bool
    """Whether the kubelet waits for it before it starts the pod."""


@dataclass(frozen=True)
class StagePods:
    """How many pods a stage has, what they request and what they mount."""

    resources: Mapping[str, Any]
    shared_memory: str
    mounts: Sequence[Mount]
    nodes: int = 1
    has_rendezvous: bool = False
    """Whether the pods find each other: indexed, with a headless Service."""
    has_host_network: bool = False
    """Whether the pods use the network of their node, and its ports."""
    profile: AcceleratorProfileSpec | None = None
    """Profile of the nodes to run on; None for stages without devices, which run on `cpu_pods`."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[SecretEnv] = ()
    secret_keys: Sequence[SecretKey] = ()
    claims: Sequence[str] = ()
    """Claims of the user, mounted read-only."""
    has_liveness_probe: bool = False
    """Whether the kubelet ends a pod whose first process does not answer for minutes."""
    grace_seconds: int = GRACE_SECONDS
    """Time between SIGTERM and SIGKILL."""
    excluded_nodes: Sequence[str] = ()
    """Nodes, by name, that the pods must not run on."""
    service_account_name: str | None = None
    """The job's own choice, where the stage reads sources or reports to trackers; None for that of
    the installation."""
    priority_class_name: str | None = None
    """The job's own choice; None for that of the pool."""
    metadata: PodMetadata | None = None
    """The job's own labels and annotations."""


def build_stage_pod_spec(
    metadata: AttemptMetadata, pods: StagePods, settings: Settings
) -> Manifest:
    """The spec of the pod template."""
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pods.grace_seconds,
        "securityContext": build_pod_security_context(settings.user_id),
        "containers": [_build_container(metadata, pods, settings)],
        "volumes": _build_volumes(metadata, pods, settings),
    }
    if account := pods.service_account_name or settings.trainer_service_account:
        # Without automountServiceAccountToken a cloud's webhook still adds a token of its own.
        spec["serviceAccountName"] = account
    spec.update(build_pull_secrets(settings))
    if pods.has_rendezvous:
        spec["subdomain"] = metadata.name
    if pods.has_host_network:
        spec["hostNetwork"] = True
        # The default policy would ask the node's resolver, which knows no Service.
        spec["dnsPolicy"] = "ClusterFirstWithHostNet"
    if pods.nodes > 1:
        spec["topologySpreadConstraints"] = [_spread_over_nodes(metadata, pods.nodes)]
    pool = pods.profile or settings.cpu_pods
    spec.update(build_scheduling(pool, settings, settings.lost_node_seconds))
    if pods.priority_class_name is not None:
        spec["priorityClassName"] = pods.priority_class_name
    if pods.excluded_nodes:
        spec["affinity"] = {"nodeAffinity": _exclude_nodes(pods.excluded_nodes)}
    return spec


def _build_container(metadata: AttemptMetadata, pods: StagePods, settings: Settings) -> Manifest:
    container: Manifest = {
        "name": CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", f"finetune_trainer.{metadata.stage}"],
        "env": [
            *_build_environment(metadata, pods, settings),
            *([deepcopy(_NODE_NAME)] if pods.has_host_network else []),
            *(_build_secret_variable(each) for each in pods.secret_keys),
        ],
        "ports": _build_ports(pods),
        "resources": deepcopy(dict(pods.resources)),
        "securityContext": deepcopy(CONTAINER_SECURITY_CONTEXT),
        "terminationMessagePath": TERMINATION_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": _build_volume_mounts(pods),
    }
    if pods.has_liveness_probe:
        container["livenessProbe"] = _build_liveness_probe()
    if pods.secrets:
        container["envFrom"] = [
            {"prefix": secret.prefix, "secretRef": {"name": secret.name}} for secret in pods.secrets
        ]
    return container


def _build_ports(pods: StagePods) -> list[Manifest]:
    """On the host network also the port of the rendezvous: the scheduler places no two pods that
    need the same port of a node on it."""
    named = {"telemetry": TELEMETRY_PORT}
    if pods.has_host_network:
        named["rendezvous"] = RENDEZVOUS_PORT
    ports: list[Manifest] = []
    for name, number in named.items():
        host = {"hostPort": number} if pods.has_host_network else {}
        ports.append({"name": name, "containerPort": number, **host, "protocol": "TCP"})
    return ports


def _build_liveness_probe() -> Manifest:
    """Fails after two minutes without an answer: then the process that watches the ranks hangs
    itself, and would neither end them nor save anything after SIGTERM."""
    return {
        "httpGet": {"path": "/healthz", "port": "telemetry"},
        "initialDelaySeconds": 60,
        "periodSeconds": 10,
        "timeoutSeconds": 10,
        "failureThreshold": 12,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }


def _build_secret_variable(key: SecretKey) -> Manifest:
    reference = {"name": key.secret, "key": key.key, "optional": not key.is_required}
    return {"name": key.key, "valueFrom": {"secretKeyRef": reference}}


def _build_environment(
    metadata: AttemptMetadata, pods: StagePods, settings: Settings
) -> list[Manifest]:
    # PyTorch looks up the user's name, and an id that the cluster assigns has none in the image.
    env = {
        "HOME": "/tmp",
        "USER": "finetune",
        "HF_HOME": "/tmp/hf",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if metadata.stage != "prepare":
        env["HF_HUB_OFFLINE"] = "1"
    if pods.has_rendezvous:
        # Ranks that gave up before the operator does would be a crash of the job.
        seconds = settings.scale_up_seconds + RENDEZVOUS_MARGIN
        env[RENDEZVOUS_TIMEOUT_ENV] = f"{seconds:g}"
    if pods.service_account_name is not None:
        env[CLOUD_IDENTITY_ENV] = "true"
    env.update(pods.env)
    if pods.profile is not None and (timeout := pods.profile.collective_timeout_seconds):
        env[COLLECTIVE_TIMEOUT_ENV] = str(timeout)
    return build_pool_environment(env, pods.profile or settings.cpu_pods)


def _build_volume_mounts(pods: StagePods) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "run", "mountPath": RUN_CONFIG_PATH.rsplit("/", 1)[0], "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for mount in pods.mounts:
        entry: Manifest = {
            "name": WORKSPACE_VOLUME,
            "mountPath": mount.path,
            "subPath": mount.sub_path,
        }
        if mount.is_read_only:
            entry["readOnly"] = True
        mounts.append(entry)
    for number, claim in enumerate(pods.claims):
        path = f"{Paths().volumes}/{claim}"
        mounts.append({"name": f"claim-{number}", "mountPath": path, "readOnly": True})
    return mounts


def _build_volumes(
    metadata: AttemptMetadata, pods: StagePods, settings: Settings
) -> list[Manifest]:
    run = {"name": metadata.name, "items": [{"key": RUN_FILE, "path": RUN_FILE}]}
    volumes: list[Manifest] = [
        {"name": "run", "configMap": run},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory}},
        {
            "name": WORKSPACE_VOLUME,
            "persistentVolumeClaim": {"claimName": settings.workspace_claim},
        },
    ]
    for number, claim in enumerate(pods.claims):
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    return volumes


def _spread_over_nodes(metadata: AttemptMetadata, nodes: int) -> Manifest:
    """One pod per node: with minDomains the scheduler waits for enough nodes instead of placing
    two pods on one."""
    return {
        "maxSkew": 1,
        "minDomains": nodes,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": metadata.selector},
    }


def _exclude_nodes(nodes: Sequence[str]) -> Manifest:
    """By metadata.name, because the label kubernetes.io/hostname may differ from the node's name.
    A field selector compares with one value, so every node has its own expression."""
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}
