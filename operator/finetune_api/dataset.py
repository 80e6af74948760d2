"""The data of a job: sources, their mixture, what is held out, and the names of columns.

finetune_api.combinations defines which formats an objective accepts.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import FractionPercent, ObjectName, SpecModel, cel, validation_config
from finetune_api.model import REVISION_RULE, Revision, Uri

Format = Literal["chat", "instruction", "completion", "preference", "unpaired", "prompt"]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class DataSource(SpecModel):
    """A file of examples, or a folder of such files."""

    model_config = validation_config(REVISION_RULE)

    uri: Uri
    """hf://datasets/org/name/file, s3://, gs://, https:// or pvc:// path of a .jsonl, .json,
    .csv or .parquet file (text files may be gzipped, .gz), or of a folder of such files."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// data set; absent means main."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with the same keys as model.credentialsSecret."""


class TrainSource(DataSource):
    """One task of the mixture."""

    weight: float = Field(default=1.0, gt=0, le=1000)
    """Factor for this source's proportion of the mixture."""


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
    """Training data; several sources are a mixture of tasks in one format."""
    temperature: float = Field(default=1.0, ge=1, le=100)
    """Temperature T of the mixture: a source of n examples is sampled in proportion to
    weight * n^(1/T) (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2). With 1 every example
    occurs once in an epoch; a higher value favours small sources. An epoch has as many examples as
    all sources together."""
    validation: DataSource | None = None
    """Held-out data from a source of its own; excludes holdout."""
    holdout: FractionPercent | None = None
    """Percentage of the training data that is held out, chosen by a hash of the content, so that
    equal rows are on the same side; excludes validation. 10% when neither is set."""
    format: Literal["auto", Format] = "auto"
    """Layout of a row; auto detects it from the objective and the columns of the first row. SFT
    accepts chat and instruction, Completion accepts completion (plain text), DPO, ORPO and Reward
    accept preference (prompt, chosen, rejected), KTO accepts unpaired (prompt, completion, label)
    and preference, GRPO accepts prompt."""
    columns: Columns = Field(default_factory=Columns)
    """Column names where they differ from the default names."""
