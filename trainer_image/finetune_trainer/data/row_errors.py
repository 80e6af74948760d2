"""Rows that cannot be used: the error reports the first in full and the next few by their line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from finetune_trainer.runtime.errors import UserError

MAX_LISTED = 5


class RowError(Exception):
    """One row cannot be used; the caller that has its file and line adds them."""

    def __init__(self, reason: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedy = remedy


@dataclass
class RowErrors:
    """Collects row errors until there are enough to report, then raises."""

    errors: list[tuple[RowError, str, int]] = field(default_factory=list)

    def add(self, error: RowError, file: str, line: int) -> None:
        """Record an error; raises UserError once the message would list no more."""
        self.errors.append((error, file, line))
        if len(self.errors) > MAX_LISTED:
            self._raise(is_complete=False)

    def raise_if_any(self) -> None:
        """Raise UserError if an error was added."""
        if self.errors:
            self._raise(is_complete=True)

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
        raise UserError(first.reason, message, first.remedy, file=file, line=line)
