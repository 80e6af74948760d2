"""Facts that one stage reports and a later one, or the planner, needs."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import LongText, ShortText, StatusModel
from finetune_api.protocol import FINITE, Digest

Day = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class AdapterFacts(StatusModel):
    """Facts about model.adapter."""

    revision: ShortText
    """Resolved revision or fingerprint of the source."""
    folder: ShortText
    """Folder of the snapshot inside adapter/ of the job's folder."""


class ModelFacts(StatusModel):
    """Facts about a model that the planner needs, read from its config and weight files."""

    architecture: ShortText
    """Class name in config.json."""
    parameters: int = Field(ge=1)
    """Number of weights; tied weights count once."""
    layers: int = Field(ge=1)
    """Number of transformer blocks."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    intermediate_size: int = Field(ge=1)
    """Width of the feed-forward layer."""
    attention_heads: int = Field(ge=1)
    """Number of query heads."""
    key_value_heads: int = Field(ge=1)
    """Number of key and value heads."""
    vocabulary: int = Field(ge=1)
    """Rows of the embedding, including those for the job's new special tokens."""
    has_tied_embeddings: bool | None = None
    """Whether embedding and head share one weight; absent in facts that an earlier release
    wrote."""
    context_length: int = Field(ge=1)
    """Longest sequence in tokens that the model supports, multiplied by the job's model.rope."""
    weight_bytes: int = Field(ge=1)
    """Size of the weights in bytes: that of their files, or of the same weights in the config's
    dtype if that is larger."""
    revision: ShortText | None = None
    """Resolved revision or fingerprint of the source."""
    folder: ShortText
    """Folder of the snapshot inside the model's cache entry."""
    adapter: AdapterFacts | None = None
    """The adapter from which training continues; absent where it starts with a new one, and for a
    reward model."""


class SkippedRows(StatusModel):
    """Rows that were left out for one reason."""

    reason: ShortText
    """Reason that the rows would have failed with."""
    rows: int = Field(ge=1)
    """Number of rows."""
    first: LongText
    """File, line and message of the first."""


class SourceFacts(StatusModel):
    """What was read from one source of rows."""

    uri: ShortText | None = None
    """Address without credentials."""
    revision: ShortText | None = None
    """Commit of an hf:// data set; elsewhere a digest over names, sizes and tags of all files at
    the address."""
    version: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Version of the one object at an s3:// or gs:// address, which version of the source pins;
    absent for other addresses, where an S3 bucket has no versions, and where the object was
    replaced or deleted during the download."""
    digest: Digest | None = None
    """Digest of the content, which sha256 of the source pins: the SHA-256 of the one file, or of
    what sha256sum prints for all files."""
    files: int = Field(ge=0)
    """Files that were read."""
    files_left_out: int = Field(default=0, ge=0)
    """Data files at the address that were not read, as split, config or files do not select
    them."""
    rows: int = Field(default=0, ge=0)
    """Rows of these files that became examples, before held-out rows are taken from them."""
    bytes: int = Field(ge=0)
    """Size of these files in bytes."""


class DataFacts(StatusModel):
    """Facts about the data that the planner needs."""

    format: Literal["chat", "instruction", "completion", "preference", "unpaired", "prompt"]
    """Layout of the rows: dataset.format, or what auto detected."""
    packed: bool = False
    """Whether a sequence can hold several examples."""
    train_examples: int = Field(ge=0)
    """Number of training examples."""
    eval_examples: int = Field(ge=0)
    """Number of held-out examples."""
    train_tokens: int = Field(ge=0)
    """Tokens in the training examples."""
    eval_tokens: int = Field(ge=0)
    """Tokens in the held-out examples."""
    train_sequences: int = Field(ge=0)
    """Training sequences after packing; without packing one for each row, pair or prompt."""
    longest_example: int = Field(ge=0)
    """Tokens of the longest example before truncation."""
    truncated_examples: int = Field(default=0, ge=0)
    """Examples whose answer was cut to training.maxSequenceLength."""
    partly_learnt_examples: int | None = Field(default=None, ge=1)
    """Conversations in which an answer is context only, because the chat template writes it in
    another way once the conversation continues; absent where there are none."""
    duplicate_examples: int = Field(default=0, ge=0)
    """Rows that repeat an earlier row."""
    skipped: list[SkippedRows] | None = Field(default=None, max_length=16)
    """Rows left out by dataset.invalidRows or dataset.longRows, by reason; data/manifest.json in
    the job's folder has more of them."""
    ignored_columns: list[ShortText] | None = Field(default=None, max_length=32)
    """Columns of the data, and keys of messages as messages[].key, that hold something and are not
    used."""
    date: Day | None = None
    """Day, YYYY-MM-DD, that every stage passes to a chat template that prints the current date;
    absent for templates that print none."""
    digest: Digest
    """SHA-256 over the source files."""
    sources: list[SourceFacts] | None = Field(default=None, max_length=17)
    """What was read from each source, in the order of dataset.train, and last from
    dataset.validation. Of many sources the addresses, versions and digests are only in
    data/manifest.json of the job."""


class WorkspaceFacts(StatusModel):
    """What prepare measured on the volume that holds checkpoints and artifacts."""

    free_bytes: int = Field(ge=0)
    """Free bytes after prepare wrote the data and the model."""
    write_bytes_per_second: float = Field(gt=0)
    """Measured bytes per second that one process writes and syncs to the volume."""


class ArtifactRef(StatusModel):
    """The exported model."""

    uri: LongText
    """pvc://claim/path of the folder."""
    digest: Digest
    """SHA-256 of its manifest.json, which holds the SHA-256 of every file."""
    bytes: int = Field(ge=0)
    """Size of all its files in bytes."""
    retention: ShortText | None = None
    """How long it stays once nothing refers to it: `export.retain` of the job, or the default of
    the installation when export began."""


class TrainFacts(StatusModel):
    """How training ended."""

    model_config = FINITE

    steps: int = Field(ge=0)
    """Optimizer steps that are done."""
    resumed_from_step: int = Field(default=0, ge=0)
    """Step of the checkpoint that the attempt resumed from; 0 without one."""
    final_loss: float | None = None
    """Training loss of the last step."""
    tokens: int = Field(default=0, ge=0)
    """Non-padding tokens that this attempt trained on, over all ranks."""
    tokens_per_second: float | None = None
    """Mean over this attempt of the non-padding tokens per second of all ranks."""
    world_size: int = Field(ge=1)
    """torch.distributed.get_world_size()."""
    engine: ShortText
    """Class name of the wrapped model."""
    precision: ShortText | None = None
    """Number format that the job was trained in, which training.precision Auto leaves open."""
    best_step: int | None = None
    """With early stopping: the step whose weights are the result."""
    best_eval_loss: float | None = None
    """Held-out loss at that step."""
    final_eval_loss: float | None = None
    """With training.evalSteps: held-out loss after the last step."""
    peak_memory_bytes: int | None = None
    """Peak memory of rank 0 in bytes."""
    mfu: float | None = None
    """Mean model FLOP/s utilisation, 0 to 1."""
    hosts: list[str] = Field(default_factory=list)
    """Host names of the pods, by node rank."""
