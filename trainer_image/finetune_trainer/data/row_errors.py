"""Rows that cannot be used, or that are too long: refused, or left out as far as the job allows.

By default the first error ends the stage, and its message has it in full and the next few by their
line. With dataset.invalidRows a share of such rows is left out instead, counted by reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from finetune_api.dataset import InvalidRows

from finetune_trainer.runtime.errors import UserError

MAX_LISTED = 5


class RowError(Exception):
    """One row cannot be used; the caller that has its file and line adds them."""

    ends_file = False
    """Whether it hides the rows of the file after it, so that it cannot be skipped."""

    def __init__(self, reason: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedy = remedy

    def at_end_of_file(self) -> RowError:
        """The same error, after which no row of the file can be read."""
        self.ends_file = True
        return self


class LongRowError(RowError):
    """A row has more tokens than a sequence; dataset.longRows can leave it out."""


@dataclass(frozen=True)
class SkippedRow:
    """A row that was left out."""

    is_long: bool
    """Left out by dataset.longRows, and not by dataset.invalidRows."""
    reason: str
    message: str
    file: str
    line: int


@dataclass
class RowErrors:
    """Collects the row errors of a job, and raises where they are too many."""

    policy: InvalidRows = field(default_factory=InvalidRows)
    errors: list[tuple[RowError, str, int]] = field(default_factory=list)
    """Those that are not skipped."""
    skipped: list[SkippedRow] = field(default_factory=list)
    _places: set[tuple[str, int]] = field(default_factory=set)

    def add(self, error: RowError, file: str, line: int) -> None:
        """Record an error; raises UserError once the message would list no more."""
        if self._can_skip(error):
            self.skip(error, file, line)
            return
        self.errors.append((error, file, line))
        if len(self.errors) > MAX_LISTED:
            self._raise(is_complete=False)

    def skip(self, error: RowError, file: str, line: int) -> None:
        """Record a row that is left out by a rule of the job."""
        if (file, line) in self._places:  # both halves of a pair
            return
        self._places.add((file, line))
        self.skipped.append(
            SkippedRow(isinstance(error, LongRowError), error.reason, error.message, file, line)
        )

    def raise_if_any(self) -> None:
        """Raise UserError if an error was added that is not skipped."""
        if self.errors:
            self._raise(is_complete=True)

    def check_share(self, total: int) -> None:
        """Raise UserError if more invalid rows were skipped than the job allows, of `total`."""
        invalid = [row for row in self.skipped if not row.is_long]
        if len(invalid) <= total * float(self.policy.max.removesuffix("%")) / 100:
            return
        first = invalid[0]
        raise UserError(
            "TooManyInvalidRows",
            f"{len(invalid)} of {total} rows cannot be used, more than dataset.invalidRows.max "
            f"({self.policy.max}); the first is line {first.line} of {first.file}: "
            f"{first.message}.",
            "Correct the rows, or raise dataset.invalidRows.max.",
            file=first.file,
            line=first.line,
        )

    def _can_skip(self, error: RowError) -> bool:
        is_other = error.ends_file or isinstance(error, LongRowError)
        return self.policy.policy == "Skip" and not is_other

    def _raise(self, is_complete: bool) -> NoReturn:
        first, file, line = self.errors[0]
        message = f"Line {line} of {file}: {first.message}."
        others = [
            str(number) if name == file else f"{number} of {name}"
            for _, name, number in self.errors[1:]
        ]
        if others:
            count = f"{len(others)} more" if is_complete else f"At least {len(others)} more"
            message += f" {count}: {'line' if len(others) == 1 else 'lines'} {', '.join(others)}."
        remedy = first.remedy
        if not first.ends_file and not isinstance(first, LongRowError):
            remedy += " dataset.invalidRows can leave such rows out."
        raise UserError(first.reason, message, remedy, file=file, line=line)
