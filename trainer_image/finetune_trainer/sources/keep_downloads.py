"""Downloads of data sets that the next attempt of prepare continues."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt, remove_quietly

FOLDER = "downloads"


@contextlib.contextmanager
def keep_downloads(attempt: Attempt) -> Iterator[Path]:
    """The folder for downloads; after any error that a retry may survive the next attempt gets it.

    After a UserError it goes with the scratch folder: the data has to change.
    """
    downloads = take_downloads(attempt)
    try:
        yield downloads
    except UserError:
        raise
    except BaseException:
        leave_downloads(attempt)
        raise


def take_downloads(attempt: Attempt) -> Path:
    """The folder for this attempt's downloads, with the complete files of an earlier attempt.

    Files that were in progress are removed, because the earlier attempt may still write to them.
    """
    downloads = attempt.scratch / FOLDER
    with contextlib.suppress(FileNotFoundError):
        (attempt.job / FOLDER).rename(downloads)
    for unfinished in [*downloads.rglob("*.part"), *downloads.rglob(".cache")]:
        remove_quietly(unfinished)
    return downloads


def leave_downloads(attempt: Attempt) -> None:
    """Move the downloads to where the next attempt finds them, unless that one has begun."""
    with contextlib.suppress(OSError):
        (attempt.scratch / FOLDER).rename(attempt.job / FOLDER)
