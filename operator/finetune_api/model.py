"""The model that a job starts from: its address, and what is changed before training.

An address is a URI whose scheme says how it is fetched; what it needs to be fetched is a Secret of
the job's namespace. A reward model is an address too, and nothing about it can be changed.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import NOT_SPACE, SUBDOMAIN, ObjectName, SpecModel, Worded, cel, validations

URI_PATTERN = (
    rf"^((hf|s3|gs|https)://[^\x00-\x20\x7f/]{NOT_SPACE}*|pvc://{SUBDOMAIN}(/{NOT_SPACE}*)?)$"
)
Uri = Annotated[
    str,
    StringConstraints(pattern=URI_PATTERN, max_length=1024),
    Worded(
        "uri must start with hf://, s3://, gs://, https:// or pvc:// and hold no spaces; after "
        "pvc:// stands the name of a claim"
    ),
]

Revision = Annotated[str, StringConstraints(min_length=1, max_length=128)]
REVISION_RULE = cel(
    "!has(self.revision) || self.uri.startsWith('hf://')",
    "revision needs an hf:// uri; other addresses have no revisions",
    ".revision",
)


class RopeScaling(SpecModel):
    """Rotary positions stretched, so that the model takes longer sequences than it was made for."""

    type: Literal["linear", "dynamic", "yarn"]
    """linear divides every position (Chen et al. 2023, arXiv 2306.15595); dynamic grows the base
    with the sequence (NTK); yarn treats each frequency by itself (Peng et al. 2023, arXiv
    2309.00071)."""
    factor: float = Field(gt=1, le=64)
    """The context becomes this many times as long."""


class Tokenizer(SpecModel):
    """Changes to the model's tokenizer; they are trained and exported with it."""

    special_tokens: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(
        default_factory=list, max_length=64
    )
    """Tokens added to the vocabulary, none of which it may have; the embedding grows, and the new
    rows are trained."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=32768)] | None = None
    """Jinja template that replaces the model's own; needed to teach a base model to chat. Its
    tokens must be in the vocabulary or in specialTokens; the one that ends an answer ends
    generation."""


class ModelAddress(SpecModel):
    """Where a model comes from."""

    model_config = validations(REVISION_RULE)

    uri: Uri
    """hf://org/name, s3://bucket/prefix, gs://bucket/prefix, https://host/model.tar.gz or
    pvc://claim/path. Must hold config.json, safetensors weights and a tokenizer."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// model; absent means main. Commits are best."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with keys such as HF_TOKEN, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL or GOOGLE_APPLICATION_CREDENTIALS_JSON."""


class ModelSource(ModelAddress):
    """Where the base model comes from, and how it is changed before training."""

    rope: RopeScaling | None = None
    """Longer context by RoPE scaling; absent leaves the model's positions as they are."""
    tokenizer: Tokenizer | None = None
    """New special tokens and another chat template."""
