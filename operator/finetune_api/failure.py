"""Why a stage or a job failed."""

from pydantic import Field

from finetune_api.base import LongText, ShortText, StatusModel
from finetune_api.protocol import StageName


class Failure(StatusModel):
    """Why a stage failed: what is wrong, where, and what to do."""

    stage: StageName | None = None
    """Stage that failed."""
    reason: ShortText
    """Machine-readable cause in CamelCase, such as ModelNotFound or BrokenRow; docs/reasons.md
    lists all of them."""
    message: LongText
    """What is wrong."""
    file: LongText | None = None
    """File in which the error is."""
    line: int | None = Field(default=None, ge=1)
    """Line of that file, counted from 1."""
    remedy: LongText | None = None
    """What to do."""
    attempt: int | None = Field(default=None, ge=1)
    """Attempt that failed."""
