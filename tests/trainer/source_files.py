"""Helpers of tests that open an address: its rows, its files, or its failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import StageError, UserError
from finetune_trainer.sources import Address, Source, open_source

NOWHERE = Path("/nonexistent")
ROWS = b'{"prompt": "a", "completion": "b"}\n'


def ignore_progress(message: str, done: int, total: int | None) -> None:
    """Ignore the progress."""


def failure(
    address: Address, volumes: Path = NOWHERE, kind: type[StageError] = UserError
) -> StageError:
    """The error of an address that cannot be opened."""
    with pytest.raises(kind) as caught:
        open_source(address, volumes)
    return caught.value


def paths(source: Source) -> list[str]:
    """The paths of the files of a source."""
    return [file.path for file in source.files]
