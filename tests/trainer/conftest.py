"""What the trainer's tests share: one tiny model and one file of rows per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.tiny import tiny_model, tiny_rows, write_rows


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tokenizer and ChatML template; treat it as read-only."""
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines with 200 prompt/completion rows; treat it as read-only."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", list(tiny_rows(200)))
