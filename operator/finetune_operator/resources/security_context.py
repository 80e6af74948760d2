"""The security contexts of pods and containers.

Every pod that the operator creates fits the `restricted` Pod Security Standard: not root, no
capability, a read-only root file system. The exception is `hostNetwork` of an AcceleratorProfile,
with which training pods need the standard `privileged`.
"""

from typing import Any

CONTAINER_SECURITY_CONTEXT: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""No privilege escalation; only the container's mounts are writable."""


def build_pod_security_context(user_id: int | None) -> dict[str, Any]:
    """Restricted, with a group that can read the workspace.

    Without a user id the cluster assigns user and groups, as OpenShift's restricted-v2 requires.
    """
    context: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if user_id is not None:
        context |= {"runAsUser": user_id, "runAsGroup": user_id, "fsGroup": user_id}
        context["fsGroupChangePolicy"] = "OnRootMismatch"
    return context
