"""The data of a job: sources, their mixture, what is held out, and the names of columns.

finetune_api.combinations defines which formats an objective accepts.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    LIST_SET,
    FractionPercent,
    LocalObjectReference,
    PatternMessage,
    SpecModel,
    cel,
    validation_config,
)
from finetune_api.model import Revision, Uri

Format = Literal["chat", "instruction", "completion", "preference", "unpaired", "prompt"]
LongRows = Literal["Fail", "Truncate", "Skip", "Split"]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256)]
SplitName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*$", max_length=128),
    PatternMessage("must be the name of one split, such as train or validation"),
]
Sha256 = Annotated[
    str,
    StringConstraints(pattern=r"^(sha256:)?[0-9a-f]{64}$", max_length=71),
    PatternMessage("must be 64 hex digits in lower case, with or without the prefix sha256:"),
]
Version = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
REVISION_RULE = cel(
    "!has(self.revision) || self.uri.startsWith('hf://')",
    "revision is only for hf:// addresses; leave it out, and pin an object at s3:// or gs:// with "
    "version, other data with sha256",
    ".revision",
)
VERSION_RULE = cel(
    "!has(self.version) || self.uri.startsWith('s3://') || self.uri.startsWith('gs://')",
    "version is only for s3:// and gs:// addresses; leave it out, and pin an hf:// data set with "
    "revision, other data with sha256",
    ".version",
)
ONE_OBJECT_RULE = cel(
    "!(has(self.version) && "
    "(has(self.files) || has(self.split) || has(self.config) || self.uri.endsWith('/')))",
    "version is that of one object: name the object in uri, and leave files, split and config out; "
    "pin a folder with sha256",
    ".version",
)
GENERATION_RULE = cel(
    "!(has(self.version) && self.uri.startsWith('gs://')) || self.version.matches('^[0-9]+$')",
    "version of a gs:// object must be its generation, a number such as 1700000000000000",
    ".version",
)
ONE_FILE_RULE = cel(
    "!self.uri.startsWith('https://') || !(has(self.files) || has(self.split) || has(self.config))",
    "an https:// address is one file; leave files, split and config out",
)
CONFIG_RULE = cel(
    "!(has(self.files) && has(self.config))",
    "a source has files and config; leave one of them out",
    ".config",
)


class DataSource(SpecModel):
    """A file of examples, or a folder of such files."""

    model_config = validation_config(
        REVISION_RULE, VERSION_RULE, ONE_OBJECT_RULE, GENERATION_RULE, ONE_FILE_RULE, CONFIG_RULE
    )

    uri: Uri
    """hf://datasets/org/name/file, s3://, gs://, https:// or pvc:// path of a .jsonl (or .ndjson,
    .jsonlines), .json, .csv, .tsv, .txt, .parquet (or .parq, .pq) or .arrow file, or of a folder of
    such files. The text formats may be compressed: .gz, .gzip, .zst or .zstd after the suffix. A
    space in a name may also be written %20; https:// addresses need %23 for #."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// data set; absent means main. status.data.sources has the
    commit."""
    version: Version | None = None
    """Version ID of the one object at an s3:// address, or generation of that at a gs:// address;
    absent means the newest. status.data.sources has the version that was read."""
    files: Pattern | None = None
    """Pattern that selects files of the folder, such as train-*.parquet or 2024/**/*.jsonl: * and ?
    match within one folder, ** in all folders below. Without it split and config decide."""
    split: SplitName | None = None
    """Split of the folder whose files are read, as the data set's README.md or the names of folders
    and files define it; absent means train, and validation in dataset.validation. Without such
    names all files are read."""
    config: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Configuration that the data set's README.md declares; absent means its default."""
    sha256: Sha256 | None = None
    """Digest that the content must have, as status.data.sources reports it: the SHA-256 of the one
    file, or of what sha256sum prints for all files in the order of their names."""
    credentials_secret_ref: LocalObjectReference | None = None
    """Secret in the job's namespace with the same keys as model.credentialsSecretRef."""


class TrainSource(DataSource):
    """One task of the mixture."""

    weight: float = Field(default=1.0, gt=0, le=1000)
    """Factor for this source's proportion of the mixture."""


class InvalidRows(SpecModel):
    """What happens to rows that cannot be used: broken, incomplete, or refused by the chat
    template."""

    policy: Literal["Fail", "Skip"] = "Fail"
    """Fail ends the job with the file and line of the first such row; Skip leaves such rows out, up
    to max, and counts them in status.data.skipped."""
    max: FractionPercent = "1%"
    """Highest percentage of all rows that Skip may leave out; more end the job."""


class Columns(SpecModel):
    """Names of the columns where they differ from the default names; prepare refuses a name for a
    column that the format does not have. docs/tasks/prepare-data.md lists the formats."""

    messages: Column | None = None
    """Chat format: column with a list of {role, content}; default names are messages and
    conversations. In the preference and prompt formats it holds the prompt, in the unpaired format
    prompt and answer."""
    prompt: Column | None = None
    """Column with the prompt, a text or a list of turns; default names are prompt, instruction and
    question."""
    completion: Column | None = None
    """Instruction and unpaired format: column with the answer; default names are completion,
    output, response and answer."""
    system: Column | None = None
    """Column with the row's system prompt, where it is not a turn of a conversation; default name
    is system."""
    input: Column | None = None
    """Column with a text that continues the prompt, as in Alpaca's rows; default names are input
    and context, where the prompt's column is instruction."""
    reasoning: Column | None = None
    """Instruction format: column with the reasoning before the answer; default names are
    reasoning_content, reasoning and thinking."""
    tools: Column | None = None
    """Column with the tools that the assistant may call, a list of function descriptions or its
    JSON text; default names are tools and functions."""
    text: Column | None = None
    """Completion format: column with the whole text; default names are text and content."""
    chosen: Column | None = None
    """Preference format: column with the better answer, a text or a conversation; default name is
    chosen."""
    rejected: Column | None = None
    """Preference format: column with the worse answer; default name is rejected."""
    label: Column | None = None
    """Unpaired format: column that says whether the answer is desirable; default name is label."""
    reference: Column | None = None
    """Prompt format: column with the correct answer, which the reward functions of GRPO compare
    with; default names are reference, answer, solution and completion."""


class Dataset(SpecModel):
    """The training data and the held-out data."""

    model_config = validation_config(
        cel(
            "!(has(self.validation) && has(self.holdout))",
            "dataset has validation and holdout; leave one of them out",
            ".holdout",
        )
    )

    train: list[TrainSource] = Field(min_length=1, max_length=16)
    """Training data; several sources are a mixture of tasks in one format. A patch replaces the
    whole list: two sources may have one address, with other splits."""
    temperature: float = Field(default=1.0, ge=1, le=100)
    """Temperature T of the mixture: a source of n examples is sampled in proportion to
    weight * n^(1/T) (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2). With 1 every example
    occurs once in an epoch; a higher value favours small sources. An epoch has as many examples as
    all sources together."""
    validation: DataSource | None = None
    """Held-out data from a source of its own, or from another split of a training source; excludes
    holdout."""
    holdout: FractionPercent | None = None
    """Percentage of the training data that is held out, chosen by a hash of the content, so that
    equal rows are on the same side; excludes validation. 10% when neither is set."""
    format: Literal["auto", Format] = "auto"
    """Layout of a row; auto detects it from the objective and the columns of the first row. SFT
    accepts chat and instruction, Completion accepts completion (plain text), DPO, ORPO, SimPO and
    Reward accept preference (prompt, chosen, rejected), KTO accepts unpaired (prompt, completion,
    label) and preference, GRPO accepts prompt."""
    columns: Columns = Field(default_factory=Columns)
    """Column names where they differ from the default names."""
    ignore_columns: list[Column] = Field(
        default_factory=list, max_length=64, json_schema_extra=LIST_SET
    )
    """Columns that are left out although they mean something; prepare refuses columns such as
    images or tools where it cannot use them."""
    invalid_rows: InvalidRows = Field(default_factory=InvalidRows)
    """What happens to rows that cannot be used."""
    long_rows: LongRows | None = None
    """What happens to rows with more tokens than training.maxSequenceLength: Fail ends the job with
    the line of the first, Truncate cuts the end of the answer, Skip leaves the row out, and Split,
    only for objective Completion, continues the text in another sequence. All are counted in
    status.data. Default is Split for objective Completion, Fail for GRPO, and Truncate for others,
    where a prompt that leaves no tokens for an answer ends the job."""
