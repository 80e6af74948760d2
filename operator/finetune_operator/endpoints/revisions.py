"""Which revision an endpoint requires: an existing one, or a new number.

The key of a revision is `<spec digest>-<pod digest>`. The first covers the artifact, which the spec
names or a job has exported, and the rest of the spec (profile by name, devices); the second covers
the pods that follow from it (the profile's content, the image, the operator's own builders)
together with the probe. A revision that takes traffic is replaced only when the first changes, so
that an upgrade or an edited profile never restarts a model that serves. A revision that does not
take traffic yet is replaced when either changes: that is how a user repairs a profile. A failed one
is replaced by one with the same key where a retry is due.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from finetune_api.modelendpoint import ModelEndpointSpec

from finetune_operator.decision import Settings
from finetune_operator.endpoints.observe import (
    Observed,
    Revision,
    ServedModel,
    parse_artifact,
    parse_revision_number,
)
from finetune_operator.manifest import parse_time
from finetune_operator.resources.deployment import build_serving_pod_spec
from finetune_operator.resources.metadata import compute_digest
from finetune_operator.resources.vllm import Artifact, ServedRevision
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class NewRevision:
    """A revision that the endpoint requires and that does not exist yet."""

    number: int
    model: ServedModel
    key: str
    failed_before: int
    """Revisions with the same key that failed before it, one after the other."""


def choose_revision(
    observed: Observed, settings: Settings, now: datetime
) -> Revision | NewRevision | Stalled:
    """The revision that the endpoint requires, or why a new one cannot be created now."""
    model = observed.model
    if isinstance(model, Stalled):
        return model
    spec_digest = _compute_spec_digest(observed.spec, model)
    key = _compute_key(observed, model, spec_digest, settings)
    active = observed.active
    if active is not None and active.spec_digest == spec_digest:
        return active
    newest = observed.revisions[-1] if observed.revisions else None
    if newest is not None and _is_current(newest, spec_digest, key):
        retry_at = parse_time(newest.record.retry_at)
        if retry_at is None or now < retry_at:
            return newest
    if observed.name_conflict is not None:
        return observed.name_conflict
    if isinstance(key, Stalled):
        return key
    return NewRevision(_next_number(observed), model, key, _count_failures(newest, key))


def _count_failures(newest: Revision | None, key: str) -> int:
    """Revisions with this key that failed one after the other, up to the newest."""
    if newest is None or newest.record.key != key or newest.record.retry_at is None:
        return 0
    return newest.record.failed_before + 1


def _compute_spec_digest(spec: ModelEndpointSpec, model: ServedModel) -> str:
    """Digest of what the spec requires, without replicas and probe."""
    artifact = {"uri": model.uri, "digest": model.digest}
    return compute_digest([artifact, spec.profile, spec.gpus], 12)


def build_served_revision(
    observed: Observed, number: int, key: str, artifact: Artifact | Stalled, settings: Settings
) -> ServedRevision | Stalled:
    """The input of the builders of a revision's children."""
    profile = observed.profile
    if isinstance(artifact, Stalled):
        return artifact
    if isinstance(profile, Stalled):
        return profile
    return ServedRevision(
        endpoint=observed.endpoint,
        number=number,
        key=key,
        artifact=artifact,
        profile=profile,
        gpus=observed.spec.gpus,
        replicas=observed.spec.replicas,
        settings=settings,
    )


def _is_current(newest: Revision, spec_digest: str, key: str | Stalled) -> bool:
    if newest.spec_digest != spec_digest or newest.record.state == "Retired":
        return False
    return isinstance(key, Stalled) or newest.record.key == key


def _compute_key(
    observed: Observed, model: ServedModel, spec_digest: str, settings: Settings
) -> str | Stalled:
    """The key of a new revision; number and replicas are left out of its pod digest."""
    artifact = parse_artifact(model.uri, model.digest)
    served = build_served_revision(observed, 1, "", artifact, settings)
    if isinstance(served, Stalled):
        return served
    probe = model.probe.to_wire() if model.probe else None
    content: list[Any] = [build_serving_pod_spec(replace(served, replicas=1)), probe]
    metadata = served.profile.spec.pod_metadata
    if metadata is not None and (metadata.labels or metadata.annotations):
        # Only where there are some, so that the keys of earlier releases stay as they are.
        content.append(metadata.to_wire())
    return f"{spec_digest}-{compute_digest(content, 12)}"


def _next_number(observed: Observed) -> int:
    """One more than every number that the status, the children or the Service name."""
    routed = parse_revision_number(observed.service) if observed.service else None
    numbers = [each.number for each in observed.revisions]
    return max([*numbers, routed or 0, observed.status.active_revision or 0]) + 1
