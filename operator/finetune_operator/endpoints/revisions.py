"""Which revision is wished for: one that exists, or a new number.

A revision is known by its key, `<wish>-<shape>`. The wish is what the spec says (artifact,
profile by name, devices); the shape is what the pods then look like (the profile's content, the
image, our own builders) together with the probe. A revision that takes traffic is replaced only
when the wish changes, so that an upgrade or an edited profile never restarts a model that
answers. One that has not come so far is started anew when either changes: that is how a profile
is repaired.
"""

from dataclasses import dataclass, replace

from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_api.modelendpoint import ModelEndpointSpec, RevisionStatus

from finetune_operator.decision import Settings
from finetune_operator.endpoints.observe import (
    Observed,
    Revision,
    number_of,
    read_artifact,
)
from finetune_operator.resources.deployment import build_serving_pod_spec
from finetune_operator.resources.metadata import compute_digest
from finetune_operator.resources.vllm import Artifact, ServedRevision
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class Choice:
    """The revision that is wished for."""

    revision: Revision | None
    """One that exists; None when a new one is needed."""
    number: int
    key: str
    blocked: Stalled | None = None
    """Why a new one cannot be made now."""


def choose(observed: Observed, settings: Settings) -> Choice:
    """The wished revision among those that exist, or the number of a new one."""
    wish, key = wish_of(observed.spec), _key(observed, settings)
    active = observed.active
    if active is not None and active.wish == wish:
        return Choice(active, active.number, active.record.key or wish)
    newest = observed.revisions[-1] if observed.revisions else None
    if newest is not None and _still_wished(newest, wish, key):
        return Choice(newest, newest.number, newest.record.key or wish)
    number = _next_number(observed)
    if observed.foreign is not None:
        return Choice(None, number, wish, observed.foreign)
    if isinstance(key, Stalled):
        return Choice(None, number, wish, key)
    return Choice(None, number, key)


def wish_of(spec: ModelEndpointSpec) -> str:
    """Fingerprint of what the spec asks for, replicas and probe left out."""
    return compute_digest([spec.artifact.to_wire(), spec.profile, spec.gpus], 12)


def serve(
    observed: Observed, number: int, record: RevisionStatus, settings: Settings
) -> ServedRevision | Stalled:
    """What the builders need to make the children of a revision."""
    artifact = read_artifact(record.uri, record.digest)
    profile = observed.profile
    if isinstance(artifact, Stalled):
        return artifact
    if isinstance(profile, Stalled):
        return profile
    return _served(observed, number, record.key or "", artifact, profile, settings)


def _served(
    observed: Observed,
    number: int,
    key: str,
    artifact: Artifact,
    profile: AcceleratorProfile,
    settings: Settings,
) -> ServedRevision:
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


def _still_wished(newest: Revision, wish: str, key: str | Stalled) -> bool:
    if newest.wish != wish or newest.record.state == "Retired":
        return False
    return isinstance(key, Stalled) or newest.record.key == key


def _key(observed: Observed, settings: Settings) -> str | Stalled:
    if isinstance(observed.artifact, Stalled):
        return observed.artifact
    if isinstance(observed.profile, Stalled):
        return observed.profile
    served = _served(observed, 1, "", observed.artifact, observed.profile, settings)
    probe = observed.spec.probe.to_wire() if observed.spec.probe else None
    shape = compute_digest([build_serving_pod_spec(replace(served, replicas=1)), probe], 12)
    return f"{wish_of(observed.spec)}-{shape}"


def _next_number(observed: Observed) -> int:
    pointed = number_of(observed.pointer) if observed.pointer else None
    known = [each.number for each in observed.revisions]
    return max([*known, pointed or 0, observed.status.active_revision or 0]) + 1
