"""Rows that cannot be used: the first is told in full, the next few by their line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from finetune_trainer.runtime.errors import UserError

MORE = 5


class RowError(Exception):
    """One row cannot be used; whoever knows file and line adds them."""

    def __init__(self, reason: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedy = remedy


@dataclass
class RowErrors:
    """Collects bad rows until there are enough to tell; then, or at the end, raises."""

    found: list[tuple[RowError, str, int]] = field(default_factory=list)

    def add(self, error: RowError, file: str, line: int) -> None:
        """Note one more; raises UserError once the message has room for no other."""
        self.found.append((error, file, line))
        if len(self.found) > MORE:
            self._raise(complete=False)

    def check(self) -> None:
        """Raise UserError if there was any."""
        if self.found:
            self._raise(complete=True)

    def _raise(self, complete: bool) -> NoReturn:
        first, file, line = self.found[0]
        message = f"Line {line} of {file}: {first.message}."
        if others := [self._place(place, number, file) for _, place, number in self.found[1:]]:
            count = f"{len(others)} more" if complete else f"At least {len(others)} more"
            message += f" {count}: {'line' if len(others) == 1 else 'lines'} {', '.join(others)}."
        raise UserError(first.reason, message, first.remedy, file=file, line=line)

    @staticmethod
    def _place(file: str, line: int, first_file: str) -> str:
        return str(line) if file == first_file else f"{line} of {file}"
