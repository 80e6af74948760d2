"""The security contexts of pods and containers.

Every pod that the operator creates fits the `restricted` Pod Security Standard: not root, no
capability, a read-only root file system.
"""

from typing import Any

NONROOT_ID = 65532
"""User and group of every container, the `nonroot` of distroless images."""

POD_SECURITY_CONTEXT: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": NONROOT_ID,
    "runAsGroup": NONROOT_ID,
    "fsGroup": NONROOT_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""Restricted, with a group that can read the workspace."""

CONTAINER_SECURITY_CONTEXT: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""No privilege escalation; only the container's mounts are writable."""
