"""What a reconcile may see and what it may ask for: the seam between engine and product.

`plan` functions are pure: they get a `View` of the cache (through `observe`), the `Settings`
of this installation and the time, and return a `Decision`. The engine carries it out in a
fixed order: one status write, creates, applies, deletes, events, HTTP asks, requeue. A decision
whose status is refused, as planned from an old object, is not carried out at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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
    """What a reconcile is about."""

    kind: Literal["FineTuneJob", "ModelEndpoint", "Workspace"]
    namespace: str
    name: str


@dataclass(frozen=True)
class ObjectRef:
    """An object to delete; with a uid only that very object is deleted."""

    api_version: str
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
    """A request to a pod. The answer appears under `id` in a later View; it is asked again
    when `interval` seconds have passed since the last answer and it is still wanted."""

    id: str
    url: str
    body: Mapping[str, Any] | None = None
    timeout: float = 2.0
    interval: float = 1.0


@dataclass(frozen=True)
class HttpResponse:
    """What came of an HttpAsk: a status and JSON body, or an error."""

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

    def labelled(self, kind: str, namespace: str, label: str, value: str) -> Sequence[Manifest]:
        """Objects of a kind that carry label=value."""

    def answer(self, ask_id: str) -> HttpResponse | None:
        """The newest answer to an HttpAsk of this process."""

    def serves(self, group: str, kind: str) -> bool:
        """Whether the API server knows this kind (KServe discovered)."""


@dataclass(frozen=True)
class Settings:
    """What this installation was given by its chart values."""

    trainer_image: str
    serving_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    trainer_service_account: str = ""
    """ServiceAccount of stage pods; empty means default, never with a token mounted."""
    workspace_claim: str = "finetune-workspace"
    workspace_size: str = "100Gi"
    workspace_storage_class: str | None = None
    model_retention_days: int = 30
    """Days after which a base model that no job used is removed; 0 means never."""
    progress_interval: float = 2.0
    """Seconds between pulls of /progress of a running stage."""


@dataclass(frozen=True)
class Decision:
    """What the reconciled object needs now."""

    create: tuple[Manifest, ...] = ()
    """POSTed in order; 409 with our owner and spec hash is success."""
    apply: tuple[Manifest, ...] = ()
    """Server-side applied where they differ from the cache."""
    delete: tuple[ObjectRef, ...] = ()
    status: Mapping[str, Any] | None = None
    """The whole new status; written only where it differs. None leaves it alone."""
    events: tuple[EventRecord, ...] = ()
    """Recorded only after the status write that makes them true succeeded."""
    asks: tuple[HttpRequest, ...] = field(default=())
    requeue_after: float | None = None
    """Seconds until the next look even if nothing happens."""
