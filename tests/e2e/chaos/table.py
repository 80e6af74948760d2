"""The table of faults: a row as soon as a case has ended, all of it as Markdown in the end."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

HEAD = (
    *("Case", "End", "Attempts", "Steps lost"),
    *("Reported after", "Resumes after", "Losses", "Notes"),
)


@dataclass(frozen=True)
class Row:
    """One fault and its effect on the job."""

    case: str
    end: str
    """Phase, and the reason of a failure."""
    attempts: int
    """Of training."""
    lost: int | None
    reported: float | None
    """Seconds from the fault to a status that reports it."""
    resumed: float | None
    """Seconds from the fault to the first step of the next attempt."""
    losses: str
    """How they compare with those of the undisturbed run."""
    notes: str = ""

    def line(self) -> str:
        """The row in Markdown."""
        lost = "-" if self.lost is None else str(self.lost)
        cells = (self.case, self.end, str(self.attempts), lost)
        return _line(
            *cells, _seconds(self.reported), _seconds(self.resumed), self.losses, self.notes
        )


@dataclass
class Table:
    """Rows in the order in which the cases ended."""

    setting: str
    """What the times depend on, in a sentence."""
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep a row, and print it at once."""
        self.rows.append(row)
        print(f"\n{row.line()}", flush=True)

    def markdown(self) -> str:
        """All of it, with machine and date."""
        rule = "|".join("---" for _ in HEAD)
        head = [f"{machine()} {self.setting}", "", _line(*HEAD), f"|{rule}|"]
        return "\n".join([*head, *(row.line() for row in self.rows), ""])

    def write(self, path: Path) -> None:
        """Print it, and keep it in a file."""
        path.write_text(self.markdown())
        print(f"\n{self.markdown()}\nThe table: {path}", flush=True)


def machine() -> str:
    """Date, processor and memory of this computer, in a sentence."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.datetime.now(datetime.UTC).date()
    load = os.getloadavg()[2]
    return (
        f"{today}, {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, no GPU, load "
        f"average {load:.0f}."
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
