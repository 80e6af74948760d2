"""The janitor: removes from a workspace what nothing keeps, by a list from the operator.

`python -m finetune_trainer.janitor --keep FILE ...`. The rules by which a folder is removed are in
`sources.workspace_cleanup`. A list that was cut removes nothing; neither does one that seems too
old, or from the future, by this pod's clock.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune_api.protocol import ExitCode

from finetune_trainer.runtime.logs import configure_logging
from finetune_trainer.sources.workspace_cleanup import (
    DAY_SECONDS,
    CleanupRefused,
    CleanupRules,
    WorkspaceCleanup,
)

log = logging.getLogger("finetune")


def main(argv: Sequence[str] | None = None) -> int:
    """Check the list, and clean the workspace; the operator chooses every argument."""
    configure_logging()
    # The kernel drops SIGTERM for the first process of a pod, unless it has a handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.RETRYABLE))
    arguments = parse_arguments(argv)
    try:
        check_list_age(arguments.listed_at, time.time(), arguments.list_seconds)
        listed = read_keep_list(arguments.keep)
    except CleanupRefused as refusal:
        log.error("Nothing was removed", extra={"error": str(refusal)})
        return int(ExitCode.RETRYABLE)
    rules = CleanupRules(
        claim=arguments.claim,
        keep=listed.keep,
        gone=listed.gone,
        recent=listed.recent,
        margin_seconds=arguments.margin_seconds,
        retention_seconds=arguments.model_retention_days * DAY_SECONDS,
    )
    code = clean_workspace(arguments.root, rules)
    if code == ExitCode.OK:
        log.info("Cleanup done", extra={"kept_entries": len(listed.keep)})
    return int(code)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="finetune_trainer.janitor", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/workspace"))
    parser.add_argument("--claim", required=True, help="uid of the claim")
    parser.add_argument("--keep", type=Path, required=True, help="file that lists what must stay")
    parser.add_argument("--listed-at", type=float, required=True, help="Unix time of that list")
    parser.add_argument("--list-seconds", type=float, required=True, help="longest age of the list")
    parser.add_argument("--margin-seconds", type=float, required=True)
    parser.add_argument(
        "--model-retention-days", type=float, required=True, help="0: keep indefinitely"
    )
    return parser.parse_args(argv)


def check_list_age(listed_at: float, now: float, longest: float) -> None:
    """Raise CleanupRefused where the list was made too long ago, or later than now."""
    if not abs(now - listed_at) <= longest:
        raise CleanupRefused(
            f"the list of what to keep is {now - listed_at:.0f} s old by this node's clock, and "
            f"at most {longest:.0f} s are allowed"
        )


class KeepList(NamedTuple):
    """The entries of the operator's list; `CleanupRules` explains them."""

    keep: frozenset[str]
    gone: frozenset[str]
    """Listed with a leading minus."""
    recent: frozenset[str]
    """Listed with a leading plus."""


def read_keep_list(path: Path) -> KeepList:
    """The operator's list; raises CleanupRefused where it was cut."""
    count, *entries = path.read_text().rstrip("\n").split("\n")
    if not count.isdigit() or int(count) != len(entries):
        raise CleanupRefused(
            f"the list of what to keep is incomplete: it announces {count!r} entries and has "
            f"{len(entries)}"
        )
    return KeepList(
        keep=frozenset(entry for entry in entries if entry[:1] not in ("-", "+")),
        gone=frozenset(entry[1:] for entry in entries if entry.startswith("-")),
        recent=frozenset(entry[1:] for entry in entries if entry.startswith("+")),
    )


def clean_workspace(root: Path, rules: CleanupRules) -> ExitCode:
    """Remove what may go, and log it."""
    try:
        cleanup = WorkspaceCleanup(root, rules)
        cleanup.remove_unneeded()
    except CleanupRefused as refusal:
        log.error("Nothing was removed", extra={"error": str(refusal)})
        return ExitCode.USER_ERROR
    except OSError as error:
        fields = {"file": error.filename, "error": error.strerror}
        log.error("Cannot read or write the workspace", extra=fields)
        return ExitCode.RETRYABLE
    return ExitCode.RETRYABLE if cleanup.has_failed else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
