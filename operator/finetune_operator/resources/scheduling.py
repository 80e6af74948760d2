"""Where the pods of a pool run: the fields that a stage, the janitor and a served model share."""

from finetune_api.acceleratorprofile import AcceleratorProfileSpec, CpuPods, Toleration

from finetune_operator.decision import Manifest, Settings

Pool = AcceleratorProfileSpec | CpuPods
"""What describes the nodes of a pod, with or without devices."""
LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


ARCHITECTURE_LABEL = "kubernetes.io/arch"
"""The label of a node that the kubelet sets to its architecture."""


def build_scheduling(
    pool: Pool, settings: Settings, lost_node_seconds: int | None = None
) -> Manifest:
    """The fields of a pod's spec that choose its node, its runtime and its priority.

    The node has the architecture of the installation's images, unless the pool selects another.

    `lost_node_seconds` is for how long the pod stays bound to a lost node. The API server's default
    is five minutes, in which the devices of a whole gang would be idle; None keeps it, for pods
    that a Deployment replaces one by one.
    """
    fields: Manifest = {}
    tolerations = [each.to_wire() for each in pool.tolerations]
    if lost_node_seconds is not None:
        tolerations += _tolerate_lost_node(pool.tolerations, lost_node_seconds)
    if tolerations:
        fields["tolerations"] = tolerations
    images = {ARCHITECTURE_LABEL: settings.architecture} if settings.architecture else {}
    if selector := {**images, **pool.node_selector}:
        fields["nodeSelector"] = selector
    if pool.runtime_class_name is not None:
        fields["runtimeClassName"] = pool.runtime_class_name
    if pool.priority_class_name is not None:
        fields["priorityClassName"] = pool.priority_class_name
    return fields


def _tolerate_lost_node(given: list[Toleration], seconds: int) -> list[Manifest]:
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for key in LOST_NODE_TAINTS
        if not any(each.key in (key, None) and each.effect in ("NoExecute", None) for each in given)
    ]


def build_pull_secrets(settings: Settings) -> Manifest:
    """The field imagePullSecrets, where the installation has some."""
    if not settings.image_pull_secrets:
        return {}
    return {"imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets]}
