"""What every child has in common: labels, owner, spec hash.

The engine's cache finds children by their labels. The hash tells a child that the operator created
before from another client's object of the same name.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from finetune_operator.decision import HASH_ANNOTATION, MANAGED_BY_LABEL, MANAGER, Manifest


def compute_digest(data: object, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of JSON-ready data; equal data, equal digest."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def add_spec_hash(manifest: Manifest) -> Manifest:
    """The manifest with an annotation that holds the hash of everything else in it."""
    metadata = dict(manifest.get("metadata", {}))
    annotations = {k: v for k, v in metadata.get("annotations", {}).items() if k != HASH_ANNOTATION}
    unhashed = {**manifest, "metadata": {**metadata, "annotations": annotations}}
    annotations = {**annotations, HASH_ANNOTATION: compute_digest(unhashed)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def build_labels(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The labels of a child: the operator's own, and those that identify the child."""
    return {MANAGED_BY_LABEL: MANAGER, **(more or {})}


def build_owner_reference(owner: Manifest) -> dict[str, Any]:
    """The controlling owner reference to an object as the API server returned it."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
