"""ModelEndpoint: a stable name and URL over immutable revisions of a model.

The spec names the artifact to serve, or leaves it out: then the endpoint follows the FineTuneJobs
that name it in `serve.endpoint`. Every new artifact is a new revision: the operator starts it
alongside the old one, checks it, and only then switches the traffic, so that the URL never points
at a model that does not answer.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    NOT_OBSERVED,
    NOT_SPACE,
    SUBDOMAIN,
    Condition,
    LongText,
    ObjectName,
    PatternMessage,
    ShortText,
    SpecModel,
    StatusModel,
    Time,
    cel,
    list_map_key,
    validation_config,
)
from finetune_api.evaluation_summary import ChatMessage, ProbeRecord
from finetune_api.protocol import Digest

ArtifactUri = Annotated[
    str,
    StringConstraints(pattern=rf"^pvc://{SUBDOMAIN}/{NOT_SPACE}+$", max_length=1024),
    PatternMessage("uri must be pvc://claim/folder"),
]


class ServedArtifact(SpecModel):
    """The exported model to serve."""

    uri: ArtifactUri
    """pvc://claim/path of a folder with safetensors weights, tokenizer and manifest.json."""
    digest: Digest
    """SHA-256 of the folder's manifest.json; a new digest is a new revision."""


class Probe(SpecModel):
    """A prompt with a known greedy answer, which a revision must repeat before it gets traffic."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=16)
    """Conversation that the operator sends."""
    answer: LongText
    """Answer that the model gave when it was evaluated."""
    max_tokens: int = Field(ge=1, le=512)
    """Limit of generated tokens."""


class ModelEndpointSpec(SpecModel):
    """Which model is served, and on what hardware."""

    model_config = validation_config(
        cel(
            "!has(self.probe) || has(self.artifact)",
            "probe holds an answer of the model in artifact: set artifact too, or remove probe, "
            "because an endpoint without artifact takes the probe from the job whose model it "
            "serves",
            ".probe",
        )
    )

    artifact: ServedArtifact | None = None
    """Exported model to serve; a change rolls out a new revision. Absent means that the endpoint
    follows the FineTuneJobs of its namespace whose serve.endpoint is its name: it serves the model
    of the youngest one that has exported it (status.latest)."""
    probe: Probe | None = None
    """Prompt with a known answer of the artifact, which a new revision must repeat; absent means
    that the operator only checks that /v1/models lists the model."""
    profile: ObjectName | None = None
    """AcceleratorProfile to serve on; absent means the profile that is marked as default."""
    gpus: int = Field(default=1, ge=1, le=64)
    """Devices of each replica (tensor parallel); ignored on a CPU pool."""
    replicas: int = Field(default=1, ge=1, le=256)
    """Number of pods of the active revision."""


EndpointPhase = Literal["Pending", "Deploying", "Ready", "Failed"]
RevisionState = Literal["Starting", "Checking", "Active", "Failed", "Retired"]


class SourceJob(StatusModel):
    """A FineTuneJob, which may have been deleted since."""

    name: ShortText
    """metadata.name of the job."""
    uid: ShortText
    """metadata.uid of the job."""
    created_at: Time
    """metadata.creationTimestamp of the job."""


class ExportedModel(StatusModel):
    """A model that a job exported for this endpoint."""

    job: SourceJob
    """Job that trained it."""
    uri: LongText
    """Address of the artifact."""
    digest: Digest
    """Digest of the artifact."""
    probe: ProbeRecord | None = None
    """Prompt and answer that the job recorded in evaluation, which a new revision must repeat."""


class RevisionStatus(StatusModel):
    """One immutable revision."""

    revision: int = Field(ge=1)
    """Number of the revision, counted from 1."""
    digest: Digest
    """Digest of the artifact."""
    uri: LongText
    """Address of the artifact."""
    state: RevisionState
    """Starting: its pods start. Checking: the operator checks its answers. Active: it gets the
    traffic. Failed: it did not start or failed a check. Retired: a newer one replaced it."""
    key: ShortText | None = None
    """Fingerprint of artifact, profile, devices and pod; any change of them is a new revision."""
    message: LongText | None = None
    """What the revision waits for, or why it failed."""
    created_at: Time | None = None
    """When the operator first saw it, RFC 3339 in UTC."""
    ready_at: Time | None = None
    """When it first got the traffic, RFC 3339 in UTC."""
    retry_at: Time | None = None
    """When a new revision with the same content starts because this one failed, RFC 3339 in UTC."""
    failed_before: int = Field(default=0, ge=0)
    """Revisions with the same content that failed one after the other before this one."""


class ModelEndpointStatus(StatusModel):
    """Which revision gets the traffic, and the state of the others."""

    observed_generation: int = Field(default=NOT_OBSERVED, ge=NOT_OBSERVED)
    """metadata.generation that this status was computed from; -1 before the operator has written
    one."""
    phase: EndpointPhase = "Pending"
    """State of the endpoint in one word."""
    message: LongText = ""
    """State of the endpoint in one line: what it serves, what it waits for, or why it failed."""
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, json_schema_extra=list_map_key("type")
    )
    """Conditions of type Ready, Reconciling and Stalled; docs/reasons.md explains their reasons."""
    runtime: Literal["Deployment", "KServe"] | None = None
    """What manages the pods: a Deployment, or KServe where it is installed."""
    url: LongText | None = None
    """Base URL of the OpenAI API inside the cluster."""
    latest: ExportedModel | None = None
    """The model of the youngest job that has exported one for this endpoint, also after the job was
    deleted; served unless spec.artifact names another one."""
    active_revision: int | None = Field(default=None, ge=1)
    """Number of the revision that gets the traffic."""
    replicas: int = Field(default=0, ge=0)
    """Number of pods of the active revision, for the scale subresource."""
    selector: LongText | None = None
    """Label selector of the pods of the active revision, for the scale subresource; absent without
    an active revision."""
    revisions: list[RevisionStatus] = Field(
        default_factory=list, max_length=10, json_schema_extra=list_map_key("revision")
    )
    """The newest revisions, oldest first."""
