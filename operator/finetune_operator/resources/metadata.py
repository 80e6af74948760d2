"""The metadata of children: labels, owner, spec hash, and what those of one attempt share.

The engine's cache finds children by their labels. The hash tells a child that the operator created
before from another client's object of the same name.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_api.pod_options import PodMetadata
from finetune_api.protocol import StageName

from finetune_operator.decision import (
    ATTEMPT_LABEL,
    HASH_ANNOTATION,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    MANAGED_BY_LABEL,
    MANAGER,
    STAGE_LABEL,
    Manifest,
)
from finetune_operator.names import child_name


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


def build_pod_metadata(
    labels: Mapping[str, str],
    given: Iterable[PodMetadata | None],
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The metadata of a pod template: the operator's own labels and annotations, and those given,
    of which a later one wins."""
    out: dict[str, dict[str, str]] = {"labels": {}, "annotations": {}}
    for each in filter(None, given):
        out["labels"] |= each.labels
        out["annotations"] |= each.annotations
    out["labels"] |= labels
    out["annotations"] |= annotations or {}
    return {key: value for key, value in out.items() if value}


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


KUEUE_PREFIX = "kueue.x-k8s.io/"
QUEUE_LABEL = KUEUE_PREFIX + "queue-name"


@dataclass(frozen=True)
class AttemptMetadata:
    """What the children of one attempt of a FineTuneJob have in common: name, labels, owner."""

    job: Manifest
    """The FineTuneJob as the API server returned it."""
    stage: StageName
    attempt: int

    @cached_property
    def name(self) -> str:
        """Name of every child of this attempt."""
        return child_name(self.job["metadata"]["name"], self.stage, self.attempt)

    @property
    def selector(self) -> dict[str, str]:
        """Labels that only the pods of this attempt have."""
        return {
            JOB_UID_LABEL: self.job["metadata"]["uid"],
            STAGE_LABEL: self.stage,
            ATTEMPT_LABEL: str(self.attempt),
        }

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every child and pod."""
        return build_labels({JOB_NAME_LABEL: self.job["metadata"]["name"], **self.selector})

    @property
    def queue_labels(self) -> dict[str, str]:
        """Labels by which Kueue finds the queue and the priority of a Job, from the FineTuneJob."""
        labels: dict[str, str] = self.job["metadata"].get("labels") or {}
        return {key: value for key, value in labels.items() if key.startswith(KUEUE_PREFIX)}

    def to_manifest(self) -> dict[str, Any]:
        """The metadata of a child that the job owns."""
        return {
            "name": self.name,
            "namespace": self.job["metadata"]["namespace"],
            "labels": self.labels,
            "ownerReferences": [build_owner_reference(self.job)],
        }
