"""Removes folders of jobs that are gone: `python -m finetune_trainer.janitor jobs/UID ...`.

The operator decides what may go; this program only makes sure that nothing else does. It takes the
folders `jobs/<uid>` and `artifacts/<name>-<uid8>` below the root of the workspace by their exact
shape, follows no link, and removing what is not there is a success, so it can be run again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_api.run import ExitCode

_UID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
REMOVABLE = re.compile(rf"jobs/{_UID}|artifacts/[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?-[0-9a-f]{{8}}")
TARGETS_VARIABLE = "FINETUNE_JANITOR_REMOVE"
_TRIES = 3


class Refused(Exception):
    """A target that is none of ours to remove."""


def remove(root: Path, target: str) -> int:
    """Delete `root`/`target` and return the bytes that this frees; 0 where it is not there.

    Raises Refused where the name has another shape or a link is in the way.
    """
    if not REMOVABLE.fullmatch(target):
        raise Refused(f"{target!r} is neither jobs/<uid> nor artifacts/<name>-<uid8>")
    path = root / target
    if path.is_symlink() or path.parent.is_symlink():
        raise Refused(f"{target!r} is a link")
    if not path.exists():
        return 0
    if not path.is_dir():
        raise Refused(f"{target!r} is not a folder")
    freed = _bytes_below(path)
    # A process that lost its node may still write: new files can appear behind us.
    for attempt in range(_TRIES):
        try:
            shutil.rmtree(path)
            break
        except OSError:
            if attempt == _TRIES - 1:
                raise
    return freed


def _bytes_below(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(here, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def run(root: Path, targets: Sequence[str], say: Callable[[str], None]) -> ExitCode:
    """Remove every target, say what each freed, and go on where one is refused or fails."""
    code = ExitCode.OK
    for target in targets:
        try:
            say(f"removed {target}: {remove(root, target)} bytes freed")
        except Refused as refused:
            say(f"refused: {refused}")
            code = ExitCode.USER_ERROR
        except OSError as error:
            say(f"could not remove {target}: {error.strerror}")
            code = ExitCode.RETRYABLE if code == ExitCode.OK else code
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: targets as arguments or, parted by spaces, in FINETUNE_JANITOR_REMOVE."""
    parser = argparse.ArgumentParser(prog="finetune_trainer.janitor", description=__doc__)
    parser.add_argument("targets", nargs="*", help="jobs/<uid> or artifacts/<name>-<uid8>")
    parser.add_argument("--root", type=Path, default=Path("/workspace"))
    given = parser.parse_args(argv)
    targets = [*given.targets, *os.environ.get(TARGETS_VARIABLE, "").split()]
    return int(run(given.root, targets, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    sys.exit(main())
