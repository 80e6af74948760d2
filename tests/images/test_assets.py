"""The demo's model and data: whole, always the same, and readable for the cluster's user."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hack.demo import assets

pytestmark = pytest.mark.timeout(900)

DATASET_SHA256 = "f81aee6348c1cac2c5b2c3910e56bbf3a0f4fdf66d3abf7c484fd84ad1aceccd"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_model_and_data_are_the_same_bytes_on_every_machine() -> None:
    assert _sha256(assets.dataset()) == DATASET_SHA256
    assert _sha256(assets.model() / "model.safetensors") == WEIGHTS_SHA256


def test_every_row_asks_and_answers() -> None:
    rows = [json.loads(line) for line in assets.dataset().read_text().splitlines()]
    assert len(rows) > 8000
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert all(row.keys() == {"prompt", "completion"} and row["completion"] for row in rows)


def test_placed_model_is_complete_and_readable_by_others(tmp_path: Path) -> None:
    assets.place(tmp_path)
    model = tmp_path / "models" / assets.MODEL_NAME
    names = {path.name for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert all(path.stat().st_mode & 0o004 for path in tmp_path.rglob("*") if path.is_file())
