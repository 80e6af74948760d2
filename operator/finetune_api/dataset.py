"""The data of a job: sources, their mixture, what is held out, and what rows are called.

Which formats an objective learns from stands in finetune_api.combinations.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ObjectName, Share, SpecModel, cel, validations
from finetune_api.model import REVISION_RULE, Revision, Uri

Format = Literal["chat", "instruction", "completion", "preference", "unpaired", "prompt"]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class DataSource(SpecModel):
    """One file, or one folder of files, of examples."""

    model_config = validations(REVISION_RULE)

    uri: Uri
    """hf://datasets/org/name/file, s3://, gs://, https:// or pvc:// path of a .jsonl, .json,
    .csv or .parquet file (.gz allowed for text)."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// data set; absent means main."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace, keys as in model.credentialsSecret."""


class TrainSource(DataSource):
    """One task of the mixture."""

    weight: float = Field(default=1.0, gt=0, le=1000)
    """Multiplies this source's share of the mixture."""


class Columns(SpecModel):
    """Names of the columns where they differ from the usual ones; one that the format does not
    have is refused. docs/concepts.md has the table of formats."""

    messages: Column | None = None
    """Chat format: list of {role, content}; usual names are messages and conversations. Of the
    preference and prompt format the prompt, of the unpaired one prompt and answer."""
    prompt: Column | None = None
    """What is asked, a text or a list of turns; usual names are prompt, instruction and
    question."""
    completion: Column | None = None
    """Instruction and unpaired format: what is answered; usual names are completion, output,
    response and answer."""
    system: Column | None = None
    """A system prompt of the row, where it is no turn of a conversation; usual name is system."""
    text: Column | None = None
    """Completion format: the whole text; usual names are text and content."""
    chosen: Column | None = None
    """Preference format: the better answer, a text or a conversation; usual name is chosen."""
    rejected: Column | None = None
    """Preference format: the worse answer; usual name is rejected."""
    label: Column | None = None
    """Unpaired format: whether the answer is desirable; usual name is label."""
    reference: Column | None = None
    """Prompt format: the right answer, given to the reward functions of GRPO; usual names are
    reference, answer, solution and completion."""


class Dataset(SpecModel):
    """What the model learns from and what it is judged on."""

    model_config = validations(
        cel(
            "!(has(self.validation) && has(self.holdout))",
            "give validation or holdout, not both",
            ".holdout",
        )
    )

    train: list[TrainSource] = Field(min_length=1, max_length=16)
    """Training data; several sources are a mixture of tasks in one format."""
    temperature: float = Field(default=1.0, ge=1, le=100)
    """Of the mixture: source i with n examples is drawn in proportion to weight * n^(1/T)
    (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2). 1 takes every example once an epoch;
    more favours small sources. An epoch has as many examples as all sources together."""
    validation: DataSource | None = None
    """Held-out data; give this or holdout, not both."""
    holdout: Share | None = None
    """Share of the training data that is held out, chosen by content hash so that equal rows
    never stand on both sides; 10% when neither validation nor holdout is given."""
    format: Literal["auto", Format] = "auto"
    """Layout of a row; auto looks at the objective and the columns of the first row. SFT takes
    chat or instruction, Completion takes completion (plain text), DPO, ORPO and Reward take
    preference (prompt, chosen, rejected), KTO takes unpaired (prompt, completion, label) or
    preference, GRPO takes prompt."""
    columns: Columns = Field(default_factory=Columns)
    """Column names where they differ from the usual ones."""
