"""The seam: what the engine gives to a reconcile function, and what it gets back.

Engine and reconcile functions meet only here. A reconcile function is pure: it gets a `Key`, a
`View` of the cache and the time, reads the `Settings` of this installation, and returns a
`Decision`. The engine carries it out in a fixed order: one status write, creates, applies,
deletes, events, HTTP requests, requeue. If the API server rejects the status because the function
read an outdated object, nothing of the decision is carried out. `controllers` fills in the table
(`ControllerTable`) of which function serves which key; `engine.reconciler` calls it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from finetune_api.acceleratorprofile import CpuPods
from finetune_api.artifact_retention import ALWAYS

Manifest = dict[str, Any]

JOB_NAME_LABEL = "finetune.dev/job-name"
JOB_UID_LABEL = "finetune.dev/job-uid"
STAGE_LABEL = "finetune.dev/stage"
ATTEMPT_LABEL = "finetune.dev/attempt"
ENDPOINT_LABEL = "finetune.dev/endpoint"
REVISION_LABEL = "finetune.dev/revision"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "finetune-operator"
HASH_ANNOTATION = "finetune.dev/spec-hash"


@dataclass(frozen=True, order=True)
class Key:
    """What a reconcile is about. Cluster-scoped objects have namespace ''."""

    kind: Literal["FineTuneJob", "ModelEndpoint", "AcceleratorProfile", "Workspace"]
    namespace: str
    name: str


@dataclass(frozen=True)
class ObjectRef:
    """An object to delete; with a uid only that very object is deleted."""

    kind: str
    namespace: str
    name: str
    uid: str | None = None


@dataclass(frozen=True)
class EventRecord:
    """A Kubernetes event about the reconciled object."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class HttpRequest:
    """A request to a pod, POST if it has a body. The response appears under `id` in a later View.
    The request is repeated `interval` seconds after its last response for as long as decisions
    contain it."""

    id: str
    url: str
    body: Mapping[str, Any] | None = None
    timeout: float = 2.0
    """Seconds."""
    interval: float = 1.0
    """Seconds."""


@dataclass(frozen=True)
class EventQuery:
    """A query for the Kubernetes events about one object that have a reason. The body of its
    response is the list of events; it is repeated as an HttpRequest is."""

    id: str
    namespace: str
    uid: str
    """Uid of the object."""
    reason: str
    interval: float = 30.0
    """Seconds."""


@dataclass(frozen=True)
class HttpResponse:
    """The result of an HttpRequest or EventQuery: a status and JSON body, or an error."""

    at: float
    """Unix time in seconds."""
    status: int | None = None
    body: Any = None
    error: str | None = None


class View(Protocol):
    """The cache as a reconcile sees it. Objects are raw and must not be changed."""

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object, or None. Cluster-scoped kinds have namespace ''."""

    def list(self, kind: str, namespace: str | None = None) -> Sequence[Manifest]:
        """All objects of a kind, in one namespace or everywhere."""

    def list_by_label(
        self, kind: str, namespace: str, label: str, value: str
    ) -> Sequence[Manifest]:
        """Objects of a kind that carry label=value."""

    def http_response(self, request_id: str) -> HttpResponse | None:
        """The newest response to an HttpRequest or EventQuery of this process."""

    def serves(self, group: str, kind: str) -> bool:
        """Whether the API server serves this kind (KServe may be absent)."""


@dataclass(frozen=True)
class Settings:
    """What the administrator set for this installation in its chart values."""

    trainer_image: str
    serving_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    trainer_service_account: str = ""
    """ServiceAccount of stage pods; empty means default, never with a token mounted."""
    allowed_service_accounts: tuple[str, ...] = ()
    """ServiceAccounts that jobs may name for their stage pods instead."""
    workspace_claim: str = "finetune-workspace"
    workspace_size: str = "100Gi"
    workspace_storage_class: str | None = None
    model_retention_days: int = 30
    """Days after which a base model that no job used is removed; 0 means never."""
    artifact_retention: str = ALWAYS
    """How long an artifact of a job without export.retain stays once nothing refers to it."""
    default_ttl_seconds_after_finished: int | None = None
    """Seconds after its end at which a job without a time to live of its own is deleted; None means
    never."""
    progress_interval: float = 2.0
    """Seconds between polls of /progress of a running stage."""
    user_id: int | None = 65532
    """User and group of every pod, the `nonroot` of distroless images; None where the cluster
    assigns them."""
    has_ipv6_pods: bool = False
    """Whether the cluster's Services, and so the probes of its pods, use IPv6 by default."""
    architecture: str | None = None
    """Architecture of the nodes for every pod whose pool names none; None where the images are
    built for all of the cluster's."""
    cpu_pods: CpuPods = field(default_factory=CpuPods)
    """Where prepare, export and the janitor run."""
    lost_node_seconds: int = 30
    """Seconds after which the pods of a node that is not ready or unreachable are given up."""
    watches_all_namespaces: bool = True
    """Whether this operator sees every object that may use a profile, and writes its status."""
    scale_up_seconds: float = 600.0
    """Seconds that an autoscaler may take to add a node, before a pod without one is reported as
    Stalled and a gang gives its other devices back."""

    @property
    def scale_up_patience(self) -> timedelta:
        """`scale_up_seconds` as a duration."""
        return timedelta(seconds=self.scale_up_seconds)


@dataclass(frozen=True)
class Decision:
    """What the reconciled object needs now."""

    create: tuple[Manifest, ...] = ()
    """POSTed in order; 409 with our owner and spec hash is success."""
    apply: tuple[Manifest, ...] = ()
    """Server-side applied where they differ from the cache."""
    delete: tuple[ObjectRef, ...] = ()
    status: Mapping[str, Any] | None = None
    """The whole new status; written only where it differs. None keeps the old one."""
    events: tuple[EventRecord, ...] = ()
    """Recorded only after the status write that makes them true succeeded."""
    requests: tuple[HttpRequest | EventQuery, ...] = ()
    """The requests to repeat from now on; one that is not listed any more is dropped."""
    requeue_after: float | None = None
    """Seconds until the next reconcile even if no event arrives."""


Reconcile = Callable[[Key, View, datetime], Decision | None]
"""What a key needs now; None when its object does not exist. Pure."""

OnRejected = Callable[[Manifest, EventRecord, datetime], Mapping[str, Any] | None]
"""The status of an object for which the API server rejects a write, given the object and why; None
to keep the status. Pure."""


@dataclass(frozen=True)
class ControllerTable:
    """The table that the engine works by; `finetune_operator.controllers` fills it in."""

    reconcile: Mapping[str, Reconcile]
    """By kind of key: what it needs now."""
    on_rejected: Mapping[str, OnRejected]
    """By kind of key: the status that shows the user what the API server rejects."""
    keys_of: Callable[[Manifest, View, Manifest | None], Iterable[Key]]
    """The keys to enqueue when this object was changed or deleted. The last argument is the object
    before the change; None where it is new, deleted, or to be handled as if it were new."""
    keys_of_deleted: Callable[[Manifest], Iterable[Key]] = lambda _deleted: ()
    """More keys to enqueue when this object was deleted."""
    initial_keys: Callable[[View], Iterable[Key]] = lambda _view: ()
    """The keys to enqueue after the first lists, for what was deleted while no operator ran."""
    delays: Mapping[str, float] = field(default_factory=dict)
    """By kind of key: the seconds between the first of several changes and the one reconcile for
    all of them. Absent means none."""

    def delay_of(self, key: Key) -> float:
        """The seconds by which a reconcile for a change is delayed."""
        return self.delays.get(key.kind, 0.0)
