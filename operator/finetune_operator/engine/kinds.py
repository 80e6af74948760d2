"""The kinds of object that the operator reads or writes, and their paths at the API server.

A table instead of discovery: the operator's RBAC names exactly these, so the operator could not
write a kind that is missing here anyway. Only KServe's kinds may be absent from a cluster;
`relist` checks at run time whether the API server serves them. `kube_client` builds its requests
from this table.
"""

from dataclasses import dataclass

from finetune_operator.decision import MANAGED_BY_LABEL, MANAGER

FINETUNE_GROUP = "finetune.dev"
KSERVE_GROUP = "serving.kserve.io"


@dataclass(frozen=True)
class Resource:
    """Address of a kind: /apis/<group>/<version>[/namespaces/<namespace>]/<plural>."""

    kind: str
    group: str
    version: str
    plural: str
    is_namespaced: bool = True
    selector: str = ""
    """Label selector of the objects that are watched."""
    is_optional: bool = False
    """Whether a cluster may lack the kind."""

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of the group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Path of the collection (all namespaces when namespace is ''), or of one object."""
        middle = f"/namespaces/{namespace}" if self.is_namespaced and namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{self.root}{middle}/{self.plural}{tail}"


_OURS = f"{MANAGED_BY_LABEL}={MANAGER}"

WATCHED: tuple[Resource, ...] = (
    Resource("FineTuneJob", FINETUNE_GROUP, "v1alpha1", "finetunejobs"),
    Resource("ModelEndpoint", FINETUNE_GROUP, "v1alpha1", "modelendpoints"),
    Resource("AcceleratorProfile", FINETUNE_GROUP, "v1alpha1", "acceleratorprofiles", False),
    # Without a selector: a job waits for the user's claim that its pvc:// address names.
    Resource("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims"),
    Resource("Job", "batch", "v1", "jobs", selector=_OURS),
    Resource("Pod", "", "v1", "pods", selector=_OURS),
    Resource("Service", "", "v1", "services", selector=_OURS),
    Resource("ConfigMap", "", "v1", "configmaps", selector=_OURS),
    Resource("Deployment", "apps", "v1", "deployments", selector=_OURS),
    Resource(
        "InferenceService",
        KSERVE_GROUP,
        "v1beta1",
        "inferenceservices",
        True,
        _OURS,
        is_optional=True,
    ),
    Resource(
        "ServingRuntime", KSERVE_GROUP, "v1alpha1", "servingruntimes", True, _OURS, is_optional=True
    ),
)
LEASE = Resource("Lease", "coordination.k8s.io", "v1", "leases")
EVENT = Resource("Event", "", "v1", "events")

_BY_KIND = {each.kind: each for each in (*WATCHED, LEASE, EVENT)}


def resource(kind: str) -> Resource:
    """The address of a kind; KeyError, which lists the known kinds, for any other."""
    try:
        return _BY_KIND[kind]
    except KeyError:
        known = ", ".join(sorted(_BY_KIND))
        raise KeyError(
            f"kind {kind} is not in finetune_operator.engine.kinds, which has {known}"
        ) from None
