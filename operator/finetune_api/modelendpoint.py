"""ModelEndpoint: a stable name and URL over immutable revisions of a model.

A FineTuneJob with `serve` writes the artifact here; people may do so by hand. Every new
artifact digest is a new revision: it is started beside the old one, checked, and only then
takes the traffic, so that the URL never points at a model that does not answer.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    NOT_SPACE,
    SUBDOMAIN,
    Condition,
    LongText,
    ObjectName,
    ShortText,
    SpecModel,
    StatusModel,
    Worded,
    keyed_by,
)
from finetune_api.run import ChatMessage, Digest

ArtifactUri = Annotated[
    str,
    StringConstraints(pattern=rf"^pvc://{SUBDOMAIN}/{NOT_SPACE}+$", max_length=1024),
    Worded("uri must be pvc://claim/folder"),
]


class ServedArtifact(SpecModel):
    """The exported model to serve."""

    uri: ArtifactUri
    """pvc://claim/path of a folder with safetensors weights, tokenizer and manifest.json."""
    digest: Digest
    """SHA-256 of the folder's manifest.json; a new digest is a new revision."""


class Probe(SpecModel):
    """A question whose answer is known, asked greedily before a revision takes traffic."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=16)
    """The conversation that is sent."""
    answer: LongText
    """What the model answered when it was evaluated."""
    max_tokens: int = Field(ge=1, le=512)
    """Tokens that are asked for."""


class ModelEndpointSpec(SpecModel):
    """What is served and on what."""

    artifact: ServedArtifact
    """The model."""
    probe: Probe | None = None
    """Question with a known answer; absent means that only /v1/models is asked."""
    profile: ObjectName | None = None
    """AcceleratorProfile to serve on; absent means the one marked as default."""
    gpus: int = Field(default=1, ge=1, le=64)
    """Devices of each replica (tensor parallel); ignored on a CPU pool."""
    replicas: int = Field(default=1, ge=1, le=256)
    """Pods of the revision that takes the traffic."""


EndpointPhase = Literal["Pending", "Deploying", "Ready", "Failed"]
RevisionState = Literal["Starting", "Checking", "Active", "Failed", "Retired"]


class RevisionStatus(StatusModel):
    """One immutable revision."""

    revision: int = Field(ge=1)
    """Number, counted from 1."""
    digest: Digest
    """Digest of the artifact."""
    uri: LongText
    """Artifact."""
    state: RevisionState
    """How far it is; Active takes the traffic."""
    key: ShortText | None = None
    """Fingerprint of what makes it this revision: artifact, profile, devices and pod."""
    message: LongText | None = None
    """What it waits for or why it failed."""
    created_at: ShortText | None = None
    """When it was first seen, RFC 3339 in UTC."""
    ready_at: ShortText | None = None
    """When it took the traffic, RFC 3339 in UTC."""


class ModelEndpointStatus(StatusModel):
    """What takes the traffic."""

    observed_generation: int = Field(default=0, ge=0)
    """metadata.generation that this status was computed from."""
    phase: EndpointPhase = "Pending"
    """Where the endpoint is, in one word."""
    message: LongText = ""
    """Where the endpoint is, in one line."""
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, json_schema_extra=keyed_by("type")
    )
    """Ready, Reconciling, Stalled."""
    runtime: Literal["Deployment", "KServe"] | None = None
    """What runs the pods: a Deployment, or KServe where it is installed."""
    url: LongText | None = None
    """Base URL of the OpenAI API inside the cluster."""
    active_revision: int | None = Field(default=None, ge=1)
    """The revision that takes the traffic."""
    revisions: list[RevisionStatus] = Field(
        default_factory=list, max_length=10, json_schema_extra=keyed_by("revision")
    )
    """The newest revisions, oldest first."""
