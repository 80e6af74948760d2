"""Helpers of tests that read rows: the spec of a job, a file, its samples or its failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.data.read_records import read_samples
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_files import DataFile

RoleContent = list[tuple[str, str]]


def job(objective: str = "SFT", grpo: dict[str, Any] | None = None, **dataset: Any) -> Any:
    """The spec of a job; `dataset` are fields of spec.dataset."""
    spec: dict[str, Any] = {
        "model": {"uri": "hf://acme/tiny"},
        "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}], **dataset},
        "objective": objective,
    }
    return FineTuneJobSpec.model_validate(spec if grpo is None else {**spec, "grpo": grpo})


def write_file(folder: Path, name: str, content: bytes | str) -> DataFile:
    """Write a file of rows."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return DataFile(name, path, "0" * 64)


def read(folder: Path, name: str, content: bytes | str, **fields: Any) -> list[Any]:
    """The samples of a file."""
    return read_samples([write_file(folder, name, content)], job(**fields))[1]


def read_failure(folder: Path, name: str, content: bytes | str, **fields: Any) -> Failure:
    """The failure of a file that cannot be used."""
    with pytest.raises(UserError) as caught:
        read(folder, name, content, **fields)
    assert caught.value.failure.remedy
    return caught.value.failure


def json_lines(*rows: Any) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def role_content(turns: Any) -> RoleContent:
    """Turns as pairs of role and content."""
    return [(turn.role, turn.content) for turn in turns]
