"""The pod of a stage: what it runs, what it sees of the workspace, what it may use.

A pod mounts only what is its own, each by subPath: a job can neither read another job's data
nor write the shared base model outside prepare. It has no API token and no Secret but the ones
that its job names, and those only in prepare, which runs nothing that came with the data; train
sees the keys of its experiment trackers and nothing else of their Secret.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.run import (
    COLLECTIVE_TIMEOUT_ENV,
    RUN_CONFIG_PATH,
    TELEMETRY_PORT,
    TERMINATION_PATH,
    Paths,
)

from finetune_operator.decision import Manifest, Settings
from finetune_operator.resources.attempt_metadata import AttemptMetadata
from finetune_operator.resources.configmap import RUN_FILE
from finetune_operator.resources.metadata import container_security_context, pod_security_context

WORKSPACE_VOLUME = "workspace"
CONTAINER = "trainer"
GRACE_SECONDS = 30
"""Time between SIGTERM and SIGKILL where nothing has to be saved."""


@dataclass(frozen=True)
class Mount:
    """A folder of the workspace that the pod sees."""

    path: str
    sub_path: str
    read_only: bool = False


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
    required: bool
    """Whether the pod waits for it."""


@dataclass(frozen=True)
class PodShape:
    """How large a stage is and what its pods see."""

    resources: Mapping[str, Any]
    shared_memory: str
    mounts: Sequence[Mount]
    nodes: int = 1
    rendezvous: bool = False
    """Whether the pods find each other: indexed, with a headless Service."""
    profile: AcceleratorProfileSpec | None = None
    """Pool to run on; None for stages that need no accelerator: anywhere."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[SecretEnv] = ()
    secret_keys: Sequence[SecretKey] = ()
    claims: Sequence[str] = ()
    """Claims of the user, mounted read-only."""
    must_answer: bool = False
    """Whether a pod whose first process does not answer for minutes is ended."""
    grace_seconds: int = GRACE_SECONDS
    """Time between SIGTERM and SIGKILL."""
    avoid: Sequence[str] = ()
    """Nodes, by name, that the pods must not be scheduled to."""


def stage_pod_spec(identity: AttemptMetadata, shape: PodShape, settings: Settings) -> Manifest:
    """spec of the pod template."""
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": shape.grace_seconds,
        "securityContext": pod_security_context(),
        "containers": [_container(identity, shape, settings)],
        "volumes": _volumes(identity, shape, settings),
    }
    if settings.trainer_service_account:
        spec["serviceAccountName"] = settings.trainer_service_account
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if shape.rendezvous:
        spec["subdomain"] = identity.name
    if shape.nodes > 1:
        spec["topologySpreadConstraints"] = [_one_pod_per_node(identity, shape.nodes)]
    if shape.profile is not None:
        spec.update(_scheduling(shape.profile))
    if shape.avoid:
        spec["affinity"] = {"nodeAffinity": _elsewhere(shape.avoid)}
    return spec


def _container(identity: AttemptMetadata, shape: PodShape, settings: Settings) -> Manifest:
    container: Manifest = {
        "name": CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", f"finetune_trainer.{identity.stage}"],
        "env": [
            *({"name": k, "value": v} for k, v in _environment(identity, shape).items()),
            *(_from_secret(each) for each in shape.secret_keys),
        ],
        "ports": [{"name": "telemetry", "containerPort": TELEMETRY_PORT, "protocol": "TCP"}],
        "resources": dict(shape.resources),
        "securityContext": container_security_context(),
        "terminationMessagePath": TERMINATION_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": _volume_mounts(shape),
    }
    if shape.must_answer:
        container["livenessProbe"] = _liveness()
    if shape.secrets:
        container["envFrom"] = [
            {"prefix": secret.prefix, "secretRef": {"name": secret.name}}
            for secret in shape.secrets
        ]
    return container


def _liveness() -> Manifest:
    """Two minutes without an answer: the process that watches the ranks hangs itself, so that it
    will neither end them nor save anything when it is told to stop."""
    return {
        "httpGet": {"path": "/healthz", "port": "telemetry"},
        "initialDelaySeconds": 60,
        "periodSeconds": 10,
        "timeoutSeconds": 10,
        "failureThreshold": 12,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }


def _from_secret(key: SecretKey) -> Manifest:
    reference = {"name": key.secret, "key": key.key, "optional": not key.required}
    return {"name": key.key, "valueFrom": {"secretKeyRef": reference}}


def _environment(identity: AttemptMetadata, shape: PodShape) -> dict[str, str]:
    """The profile's variables come last: the platform team knows its network and its cores."""
    env = {"HOME": "/tmp", "HF_HOME": "/tmp/hf", "TOKENIZERS_PARALLELISM": "false"}
    if identity.stage != "prepare":
        env["HF_HUB_OFFLINE"] = "1"
    env.update(shape.env)
    if shape.profile is not None:
        if timeout := shape.profile.collective_timeout_seconds:
            env[COLLECTIVE_TIMEOUT_ENV] = str(timeout)
        env.update({variable.name: variable.value for variable in shape.profile.env})
    return env


def _volume_mounts(shape: PodShape) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "run", "mountPath": RUN_CONFIG_PATH.rsplit("/", 1)[0], "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for mount in shape.mounts:
        entry: Manifest = {
            "name": WORKSPACE_VOLUME,
            "mountPath": mount.path,
            "subPath": mount.sub_path,
        }
        if mount.read_only:
            entry["readOnly"] = True
        mounts.append(entry)
    for number, claim in enumerate(shape.claims):
        path = f"{Paths().volumes}/{claim}"
        mounts.append({"name": f"claim-{number}", "mountPath": path, "readOnly": True})
    return mounts


def _volumes(identity: AttemptMetadata, shape: PodShape, settings: Settings) -> list[Manifest]:
    run = {"name": identity.name, "items": [{"key": RUN_FILE, "path": RUN_FILE}]}
    volumes: list[Manifest] = [
        {"name": "run", "configMap": run},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shape.shared_memory}},
        {
            "name": WORKSPACE_VOLUME,
            "persistentVolumeClaim": {"claimName": settings.workspace_claim},
        },
    ]
    for number, claim in enumerate(shape.claims):
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    return volumes


def _one_pod_per_node(identity: AttemptMetadata, nodes: int) -> Manifest:
    """minDomains makes the scheduler wait for enough nodes instead of doubling up on one."""
    return {
        "maxSkew": 1,
        "minDomains": nodes,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": identity.selector},
    }


def _elsewhere(nodes: Sequence[str]) -> Manifest:
    """By the names of the nodes themselves: the label kubernetes.io/hostname may differ from them,
    and a field can be compared with one value at a time."""
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}


def _scheduling(profile: AcceleratorProfileSpec) -> Manifest:
    fields: Manifest = {}
    if profile.node_selector:
        fields["nodeSelector"] = dict(profile.node_selector)
    if profile.tolerations:
        fields["tolerations"] = [toleration.to_wire() for toleration in profile.tolerations]
    return fields
