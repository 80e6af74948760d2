"""The security contexts of pods and containers.

Every pod that the operator creates fits the `restricted` Pod Security Standard: not root, no
capability, a read-only root file system.
"""

from typing import Any

NONROOT_ID = 65532
"""User and group of every container, the `nonroot` of distroless images."""


def build_pod_security_context() -> dict[str, Any]:
    """The securityContext of a pod: restricted, with a group that can read the workspace."""
    return {
        "runAsNonRoot": True,
        "runAsUser": NONROOT_ID,
        "runAsGroup": NONROOT_ID,
        "fsGroup": NONROOT_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def build_container_security_context() -> dict[str, Any]:
    """The securityContext of a container: no privilege escalation, only its mounts writable."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
