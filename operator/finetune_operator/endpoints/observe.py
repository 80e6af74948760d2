"""What a plan may know of an endpoint: the wish, the history, and the children in the cache.

Everything that a decision rests on is read here, once. The history is the union of the status and
of the children, so that neither a lost status write nor a deleted child makes a revision's number
come back. Which revision takes the traffic is told by the pointer Service, not by the status.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_api.modelendpoint import ModelEndpointSpec, ModelEndpointStatus, RevisionStatus

from finetune_operator.decision import ENDPOINT_LABEL, REVISION_LABEL, Manifest, View
from finetune_operator.profiles import find_profile
from finetune_operator.resources.vllm import (
    ARTIFACT_ANNOTATION,
    DIGEST_ANNOTATION,
    KEY_ANNOTATION,
    Artifact,
    revision_name,
)
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class Revision:
    """One revision: what the status says of it and what there is of it."""

    number: int
    record: RevisionStatus
    recorded: bool
    """Whether the record stands in the status; otherwise it was made up from the child."""
    child: Manifest | None
    """Its Deployment or InferenceService."""
    predictor: Manifest | None
    """The Deployment that KServe made for its InferenceService."""
    pods: tuple[Manifest, ...]
    """Its pods that are not being deleted, by name."""

    @property
    def wish(self) -> str:
        """Fingerprint of the part of the spec that it was made for."""
        return (self.record.key or "").partition("-")[0]

    @property
    def kserve(self) -> bool:
        """Whether KServe runs it."""
        return self.child is not None and self.child["kind"] == "InferenceService"


@dataclass(frozen=True)
class Observed:
    """The endpoint and all that belongs to it."""

    endpoint: Manifest
    name: str
    namespace: str
    generation: int
    spec: ModelEndpointSpec
    status: ModelEndpointStatus
    artifact: Artifact | Stalled
    profile: AcceleratorProfile | Stalled
    revisions: tuple[Revision, ...]
    """By number, oldest first."""
    pointer: Manifest | None
    """The Service, when it is ours."""
    runtimes: tuple[Manifest, ...]
    """ServingRuntimes of this endpoint."""
    kserve: bool
    """Whether a new revision is run by KServe."""
    foreign: Stalled | None
    """An object of somebody else that has the name of the Service."""

    def revision(self, number: int | None) -> Revision | None:
        """The revision with this number."""
        return next((each for each in self.revisions if each.number == number), None)

    @property
    def active(self) -> Revision | None:
        """The revision that takes the traffic."""
        pointed = number_of(self.pointer) if self.pointer else None
        return self.revision(pointed or self.status.active_revision)


def observe(endpoint: Manifest, view: View) -> Observed:
    """Read an endpoint and its children from the cache.

    Raises pydantic.ValidationError when the spec is not one that the CRD admits.
    """
    metadata = endpoint["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    spec = ModelEndpointSpec.model_validate(endpoint.get("spec", {}))
    status = ModelEndpointStatus.from_stored(endpoint.get("status"))
    pointer = view.get("Service", namespace, name)
    ours = pointer is not None and owned(pointer, endpoint)
    return Observed(
        endpoint=endpoint,
        name=name,
        namespace=namespace,
        generation=metadata.get("generation", 0),
        spec=spec,
        status=status,
        artifact=read_artifact(spec.artifact.uri, spec.artifact.digest),
        profile=profile_of(spec, view),
        revisions=_revisions(endpoint, status, view),
        pointer=pointer if ours else None,
        runtimes=_owned(view, "ServingRuntime", endpoint) if _kserve(view) else (),
        kserve=_kserve(view),
        foreign=None if ours or pointer is None else _name_taken(name),
    )


def read_artifact(uri: str, digest: str) -> Artifact | Stalled:
    """The claim and folder of a pvc:// address; Stalled when it leaves the claim."""
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    parts = path.strip("/").split("/")
    if not claim or any(part in ("", ".", "..") for part in parts):
        text = f"spec.artifact.uri {uri!r} must be pvc://claim/folder without '.' or '..' in it"
        return Stalled("InvalidArtifact", text)
    return Artifact(claim=claim, path="/".join(parts), uri=uri, digest=digest)


def profile_of(spec: ModelEndpointSpec, view: View) -> AcceleratorProfile | Stalled:
    """The profile that the endpoint names, or the default one, if it has enough devices."""
    found = find_profile(view, spec.profile, "spec.profile")
    if isinstance(found, Stalled):
        return found
    if found.spec.resource_name and spec.gpus > found.spec.devices_per_node:
        text = (
            f"spec.gpus is {spec.gpus}, but a node of AcceleratorProfile {found.name} "
            f"has {found.spec.devices_per_node} devices"
        )
        return Stalled("TooManyDevices", text)
    return found


def number_of(child: Manifest) -> int | None:
    """The revision that an object belongs to, by its label."""
    text = child["metadata"].get("labels", {}).get(REVISION_LABEL, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def owned(child: Manifest, owner: Manifest) -> bool:
    """Whether an object belongs to exactly this owner, and not to one of the same name before."""
    references = child["metadata"].get("ownerReferences", [])
    return any(each.get("uid") == owner["metadata"]["uid"] for each in references)


def _kserve(view: View) -> bool:
    return view.serves("serving.kserve.io", "InferenceService")


def _owned(view: View, kind: str, endpoint: Manifest) -> tuple[Manifest, ...]:
    metadata = endpoint["metadata"]
    found = view.list_by_label(kind, metadata["namespace"], ENDPOINT_LABEL, metadata["name"])
    return tuple(each for each in found if owned(each, endpoint))


def _revisions(endpoint: Manifest, status: ModelEndpointStatus, view: View) -> tuple[Revision, ...]:
    metadata = endpoint["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    children = {
        number: each
        for kind in (("Deployment", "InferenceService") if _kserve(view) else ("Deployment",))
        for each in _owned(view, kind, endpoint)
        if (number := number_of(each)) and each["metadata"]["name"] == revision_name(name, number)
    }
    records = {each.revision: each for each in status.revisions}
    pods = view.list_by_label("Pod", namespace, ENDPOINT_LABEL, name)
    return tuple(
        Revision(
            number=number,
            record=records.get(number) or _record_of(number, children[number]),
            recorded=number in records,
            child=children.get(number),
            predictor=view.get("Deployment", namespace, f"{revision_name(name, number)}-predictor"),
            pods=_pods_of(pods, number),
        )
        for number in sorted(records.keys() | children.keys())
    )


def _pods_of(pods: Sequence[Manifest], number: int) -> tuple[Manifest, ...]:
    mine = [
        each
        for each in pods
        if number_of(each) == number and "deletionTimestamp" not in each["metadata"]
    ]
    return tuple(sorted(mine, key=lambda each: str(each["metadata"]["name"])))


def _record_of(number: int, child: Manifest) -> RevisionStatus:
    annotations = child["metadata"].get("annotations", {})
    return RevisionStatus(
        revision=number,
        digest=annotations.get(DIGEST_ANNOTATION, "sha256:" + "0" * 64),
        uri=annotations.get(ARTIFACT_ANNOTATION, ""),
        state="Starting",
        key=annotations.get(KEY_ANNOTATION),
        created_at=child["metadata"].get("creationTimestamp"),
    )


def _name_taken(name: str) -> Stalled:
    text = f"a Service {name!r} that belongs to somebody else has the name of this endpoint"
    return Stalled("NameTaken", text)
