"""The model that a job starts from: its address, and what is changed before training.

The scheme of an address says how the model is fetched; credentials come from a Secret in the job's
namespace. A reward model is an address too, and a job changes nothing about it.
"""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from finetune_api.base import (
    NOT_SPACE,
    SUBDOMAIN,
    AnyValue,
    LocalObjectReference,
    PatternMessage,
    SpecModel,
    cel,
    validation_config,
)
from finetune_api.hosts import RefusedServers, RefusedUserInfo

_SEGMENT = r"[^\x00-\x20\x7f/]"
_PATH = rf"([^\x00-\x1f\x7f]*{NOT_SPACE})?"
"""Names of files may have spaces in them, but none at the end, where it is a slip."""
URI_PATTERN = (
    rf"^(hf://{_SEGMENT}+(/{_SEGMENT}*(/{_PATH})?)?|(s3|gs|https)://{_SEGMENT}{_PATH}"
    rf"|pvc://{SUBDOMAIN}(/{_PATH})?)$"
)
Uri = Annotated[
    str,
    StringConstraints(pattern=URI_PATTERN, max_length=1024),
    PatternMessage(
        "uri must start with hf://, s3://, gs://, https:// or pvc:// and contain no spaces in the "
        "name of a repository or at its end, and no control characters; pvc:// needs the name of "
        "a claim after it"
    ),
    RefusedUserInfo,
    RefusedServers,
]

Revision = Annotated[str, StringConstraints(min_length=1, max_length=128)]
REVISION_RULE = cel(
    "!has(self.revision) || self.uri.startsWith('hf://')",
    "revision is only for hf:// addresses; leave revision out, or use an hf:// uri",
    ".revision",
)


class RopeScaling(SpecModel):
    """Scaling of rotary positions for sequences longer than the model's context."""

    type: Literal["linear", "dynamic", "yarn"]
    """linear divides every position (Chen et al. 2023, arXiv 2306.15595); dynamic increases the
    base with the length of the sequence (NTK); yarn scales each frequency separately (Peng et al.
    2023, arXiv 2309.00071)."""
    factor: float = Field(gt=1, le=64)
    """Factor by which the context length is multiplied."""


class Tokenizer(SpecModel):
    """Changes to the model's tokenizer, which are trained and exported with the model."""

    special_tokens: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(
        default_factory=list, max_length=64
    )
    """Tokens that are added to the vocabulary in this order, which must not contain them yet; the
    embedding gets a row for each, which is trained."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=32768)] | None = None
    """Jinja template that replaces the model's own; a base model needs one to learn conversations.
    Its special tokens must be in the vocabulary or in specialTokens; the token that ends an answer
    ends generation."""
    chat_template_kwargs: dict[str, Annotated[JsonValue, AnyValue()]] = Field(
        default_factory=dict, max_length=16
    )
    """Values of variables that the chat template reads, such as `enable_thinking: false`. They are
    the template's defaults in training, in evaluation and in the exported model; a request to a
    server can give others."""


class ModelAddress(SpecModel):
    """Where a model comes from."""

    model_config = validation_config(REVISION_RULE)

    uri: Uri
    """hf://org/name, s3://bucket/prefix, gs://bucket/prefix, https://host/model.tar.gz or
    pvc://claim/path of a folder with config.json, safetensors weights and a tokenizer."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// model; absent means main. Name a commit for reproducible
    runs."""
    credentials_secret_ref: LocalObjectReference | None = None
    """Secret in the job's namespace with keys such as HF_TOKEN, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL or GOOGLE_APPLICATION_CREDENTIALS_JSON."""


class AdapterAddress(ModelAddress):
    """Where a LoRA adapter comes from."""

    uri: Uri
    """hf://org/name, s3://bucket/prefix, gs://bucket/prefix, https://host/adapter.tar.gz or
    pvc://claim/path of a folder with adapter_config.json and adapter_model.safetensors."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// adapter; absent means main. Name a commit for reproducible
    runs."""


class ModelSource(ModelAddress):
    """Where the base model comes from, and how it is changed before training."""

    adapter: AdapterAddress | None = None
    """LoRA adapter of this model from which training continues: a folder with adapter_config.json
    and adapter_model.safetensors. method.lora must have its settings; absent starts with a new
    adapter."""
    rope: RopeScaling | None = None
    """RoPE scaling for a longer context; absent keeps the model's positions as they are."""
    tokenizer: Tokenizer | None = None
    """New special tokens and another chat template; absent keeps the model's tokenizer."""
