"""Everything that a plan reads about an endpoint: its spec, its history, its children in the cache,
and the jobs whose models it may serve.

The history is the union of the status and the children, so that no revision's number is used twice
after a lost status write or a deleted child. The endpoint's Service, not the status, says which
revision takes the traffic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_api.evaluation_summary import ProbeRecord
from finetune_api.modelendpoint import (
    ExportedModel,
    ModelEndpointSpec,
    ModelEndpointStatus,
    Probe,
    RevisionStatus,
)

from finetune_operator.decision import ENDPOINT_LABEL, REVISION_LABEL, Manifest, View
from finetune_operator.exported_models import find_latest_model
from finetune_operator.profiles import find_profile
from finetune_operator.resources.inferenceservice import predictor_name
from finetune_operator.resources.vllm import (
    ARTIFACT_ANNOTATION,
    DIGEST_ANNOTATION,
    KEY_ANNOTATION,
    Artifact,
    revision_name,
)
from finetune_operator.stalled import INDEFINITELY, Stalled


@dataclass(frozen=True)
class ServedModel:
    """What the endpoint is to serve."""

    uri: str
    digest: str
    probe: Probe | ProbeRecord | None


@dataclass(frozen=True)
class Revision:
    """One revision: its record in the status and its objects in the cluster."""

    number: int
    record: RevisionStatus
    is_recorded: bool
    """Whether the record is in the status; otherwise it was restored from the child."""
    child: Manifest | None
    """Its Deployment or InferenceService."""
    predictor: Manifest | None
    """The Deployment that KServe created for its InferenceService."""
    pods: tuple[Manifest, ...]
    """Its pods that are not being deleted, by name."""

    @property
    def spec_digest(self) -> str:
        """Digest of the part of the spec that it was created for."""
        return (self.record.key or "").partition("-")[0]

    @property
    def is_kserve(self) -> bool:
        """Whether KServe runs it."""
        return self.child is not None and self.child["kind"] == "InferenceService"


@dataclass(frozen=True)
class Observed:
    """The endpoint and everything that belongs to it."""

    endpoint: Manifest
    name: str
    namespace: str
    generation: int
    spec: ModelEndpointSpec
    status: ModelEndpointStatus
    latest: ExportedModel | None
    """The model of the youngest job that has exported one for this endpoint."""
    profile: AcceleratorProfile | Stalled
    revisions: tuple[Revision, ...]
    """By number, oldest first."""
    service: Manifest | None
    """The Service of the endpoint's name, if the endpoint owns it."""
    runtimes: tuple[Manifest, ...]
    """ServingRuntimes of this endpoint."""
    has_kserve: bool
    """Whether KServe is installed, and will run new revisions."""
    name_conflict: Stalled | None
    """Another client's Service has the name of the endpoint."""

    def find_revision(self, number: int | None) -> Revision | None:
        return next((each for each in self.revisions if each.number == number), None)

    @property
    def model(self) -> ServedModel | Stalled:
        """The model that the spec names, else that of the youngest job."""
        if self.spec.artifact is not None:
            artifact = self.spec.artifact
            return ServedModel(artifact.uri, artifact.digest, self.spec.probe)
        if self.latest is not None:
            return ServedModel(self.latest.uri, self.latest.digest, self.latest.probe)
        text = f"waits for the model of a FineTuneJob with serve.endpoint: {self.name}"
        return Stalled("WaitingForJob", text, INDEFINITELY)

    @property
    def probe(self) -> Probe | ProbeRecord | None:
        """What a new revision must answer."""
        return None if isinstance(self.model, Stalled) else self.model.probe

    @property
    def active(self) -> Revision | None:
        """The revision that takes the traffic."""
        number = parse_revision_number(self.service) if self.service else None
        return self.find_revision(number or self.status.active_revision)


def observe(endpoint: Manifest, view: View) -> Observed:
    """Read an endpoint and its children from the cache.

    Raises pydantic.ValidationError when the CRD would not admit the spec.
    """
    metadata = endpoint["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    spec = ModelEndpointSpec.model_validate(endpoint.get("spec", {}))
    status = ModelEndpointStatus.from_stored(endpoint.get("status"))
    has_kserve = view.serves("serving.kserve.io", "InferenceService")
    service = view.get("Service", namespace, name)
    name_conflict = None
    if service is not None and not is_owned(service, endpoint):
        service = None
        name_conflict = Stalled(
            "NameTaken",
            f"Service {name!r} does not belong to this endpoint; delete it, or create the endpoint "
            "with another name",
        )
    return Observed(
        endpoint=endpoint,
        name=name,
        namespace=namespace,
        generation=metadata.get("generation", 0),
        spec=spec,
        status=status,
        latest=find_latest_model(view, namespace, name, status.latest),
        profile=choose_profile(spec, view),
        revisions=_collect_revisions(endpoint, status, view, has_kserve),
        service=service,
        runtimes=_list_owned(view, "ServingRuntime", endpoint) if has_kserve else (),
        has_kserve=has_kserve,
        name_conflict=name_conflict,
    )


def parse_artifact(uri: str, digest: str) -> Artifact | Stalled:
    """The claim and folder of a pvc:// address; InvalidArtifact if it leaves the claim."""
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    parts = path.strip("/").split("/")
    if not claim or any(part in ("", ".", "..") for part in parts):
        text = f"spec.artifact.uri {uri!r} must be pvc://claim/folder without '.' or '..' in it"
        return Stalled("InvalidArtifact", text)
    return Artifact(claim=claim, path="/".join(parts), uri=uri, digest=digest)


def choose_profile(spec: ModelEndpointSpec, view: View) -> AcceleratorProfile | Stalled:
    """The profile that the endpoint names, or the default one, if it has enough devices."""
    profile = find_profile(view, spec.profile, "spec.profile")
    if isinstance(profile, Stalled):
        return profile
    if profile.spec.resource_name and spec.gpus > profile.spec.devices_per_node:
        text = (
            f"spec.gpus is {spec.gpus}, but a node of AcceleratorProfile {profile.name} "
            f"has {profile.spec.devices_per_node} devices"
        )
        return Stalled("TooManyDevices", text)
    return profile


def parse_revision_number(child: Manifest) -> int | None:
    """The revision that an object belongs to, by its label."""
    text = child["metadata"].get("labels", {}).get(REVISION_LABEL, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def is_owned(child: Manifest, owner: Manifest) -> bool:
    """Whether an object belongs to exactly this owner, and not to an earlier one of its name."""
    references = child["metadata"].get("ownerReferences", [])
    return any(each.get("uid") == owner["metadata"]["uid"] for each in references)


def _list_owned(view: View, kind: str, endpoint: Manifest) -> tuple[Manifest, ...]:
    metadata = endpoint["metadata"]
    found = view.list_by_label(kind, metadata["namespace"], ENDPOINT_LABEL, metadata["name"])
    return tuple(each for each in found if is_owned(each, endpoint))


def _collect_revisions(
    endpoint: Manifest, status: ModelEndpointStatus, view: View, has_kserve: bool
) -> tuple[Revision, ...]:
    metadata = endpoint["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    children = {
        number: each
        for kind in (("Deployment", "InferenceService") if has_kserve else ("Deployment",))
        for each in _list_owned(view, kind, endpoint)
        if (number := parse_revision_number(each))
        and each["metadata"]["name"] == revision_name(name, number)
    }
    records = {each.revision: each for each in status.revisions}
    pods = view.list_by_label("Pod", namespace, ENDPOINT_LABEL, name)
    return tuple(
        Revision(
            number=number,
            record=records.get(number) or _restore_record(number, children[number]),
            is_recorded=number in records,
            child=children.get(number),
            predictor=view.get(
                "Deployment", namespace, predictor_name(revision_name(name, number))
            ),
            pods=_select_pods(pods, number),
        )
        for number in sorted(records.keys() | children.keys())
    )


def _select_pods(pods: Sequence[Manifest], number: int) -> tuple[Manifest, ...]:
    selected = [
        each
        for each in pods
        if parse_revision_number(each) == number and "deletionTimestamp" not in each["metadata"]
    ]
    return tuple(sorted(selected, key=lambda each: str(each["metadata"]["name"])))


def _restore_record(number: int, child: Manifest) -> RevisionStatus:
    annotations = child["metadata"].get("annotations", {})
    return RevisionStatus(
        revision=number,
        digest=annotations.get(DIGEST_ANNOTATION, "sha256:" + "0" * 64),
        uri=annotations.get(ARTIFACT_ANNOTATION, ""),
        state="Starting",
        key=annotations.get(KEY_ANNOTATION),
        created_at=child["metadata"].get("creationTimestamp"),
    )
