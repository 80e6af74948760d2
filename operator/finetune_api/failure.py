"""Why a stage or a job failed."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field

from finetune_api.base import LONG_TEXT, LongText, Reason, StatusModel
from finetune_api.protocol import StageName


def _shorten(text: object) -> object:
    return text[:LONG_TEXT] if isinstance(text, str) else text


class Failure(StatusModel):
    """Why a stage failed: what is wrong, where, and what to do."""

    stage: StageName | None = None
    """Stage that failed."""
    reason: Reason
    """Machine-readable cause in CamelCase, such as ModelNotFound or BrokenRow; docs/reasons.md
    lists all of them."""
    message: Annotated[LongText, BeforeValidator(_shorten)]
    """What is wrong; a longer message is cut."""
    file: LongText | None = None
    """File in which the error is."""
    line: int | None = Field(default=None, ge=1)
    """Line of that file, counted from 1."""
    remedy: LongText | None = None
    """What to do."""
    attempt: int | None = Field(default=None, ge=1)
    """Attempt that failed."""

    def with_message(self, message: str) -> Self:
        """The same failure with another message."""
        return self.model_copy(update={"message": _shorten(message)})
