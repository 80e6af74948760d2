"""What every child has in common: labels, owner, spec hash, and a pod that may do nothing.

The hash tells an object that we wrote before from a foreign one of the same name, and the labels
are how the engine's cache finds children. Every pod of ours fits the `restricted` Pod Security
Standard: not root, no capability, read-only root file system, no API token.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from finetune_operator.decision import HASH_ANNOTATION, MANAGED_BY_LABEL, MANAGER, Manifest

UID = 65532
"""User and group of every container, the `nonroot` of distroless images."""


def digest_of(data: object, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of JSON-ready data; equal data, equal digest."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def hashed(manifest: Manifest) -> Manifest:
    """The manifest with an annotation that holds the hash of all the rest."""
    metadata = dict(manifest.get("metadata", {}))
    annotations = {k: v for k, v in metadata.get("annotations", {}).items() if k != HASH_ANNOTATION}
    bare = {**manifest, "metadata": {**metadata, "annotations": annotations}}
    marked = {**annotations, HASH_ANNOTATION: digest_of(bare)}
    return {**manifest, "metadata": {**metadata, "annotations": marked}}


def labels(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The labels of a child: ours, and what identifies it."""
    return {MANAGED_BY_LABEL: MANAGER, **(more or {})}


def owner_reference(owner: Manifest) -> dict[str, Any]:
    """The controlling owner reference to an object as the API server returned it."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def pod_security_context() -> dict[str, Any]:
    """The securityContext of a pod: restricted, and a group that can read the workspace."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security_context() -> dict[str, Any]:
    """The securityContext of a container: no way up, nothing writable but its mounts."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
