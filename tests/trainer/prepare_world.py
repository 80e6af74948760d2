"""Helpers of tests of prepare: folders as its pod sees them, and a hub with a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from finetune_api.facts import DataFacts
from finetune_api.failure import Failure
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.data.token_store import IGNORED, TokenStore
from finetune_trainer.prepare import prepare
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.telemetry import Report
from finetune_trainer.sources import Credentials

from tests.trainer.servers import Hub, Repository
from tests.trainer.tiny import tiny_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]
UID = "0b0e7c0e-1111-4222-8333-444455556666"
END = "<|im_end|>"
"""The text of the token that ends an answer of the tiny model."""


class World:
    """Folders as a pod sees them: a claim `data` with rows, a cache and a job folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.report = Report("prepare", 1)
        self.secrets: dict[str, Credentials] = {}
        self.attempt = 0
        self.rows("rows.jsonl", list(tiny_rows(100)))

    @property
    def data(self) -> Path:
        """The job's data folder."""
        return self.root / "job" / "data"

    def rows(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """Write a file into the claim `data`."""
        return write_rows(self.root / "pvc" / "data" / name, rows)

    def run_config(self, **changes: Any) -> RunConfig:
        """A run file; sections of the spec are merged with `changes`."""
        spec: dict[str, Any] = {
            "model": {"uri": "hf://acme/tiny"},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "training": {"maxSequenceLength": 128},
        }
        for name, change in changes.items():
            spec[name] = {**spec.get(name, {}), **change} if isinstance(change, dict) else change
        folders = {
            "modelCache": "cache",
            "rewardCache": "judges",
            "job": "job",
            "volumes": "pvc",
        }
        paths = {name: str(self.root / folder) for name, folder in folders.items()}
        job = {"name": "bot", "namespace": "team", "uid": UID}
        config: dict[str, Any] = {"stage": "prepare", "attempt": max(1, self.attempt)}
        config |= {"job": job, "spec": spec, "paths": paths}
        return RunConfig.model_validate(config)

    def prepare(self, today: str | None = None, **changes: Any) -> StageResult:
        """Run the stage, as its next attempt."""
        self.attempt += 1
        return prepare(self.run_config(**changes), self.report, self.secrets, today)

    def fails(self, **changes: Any) -> Failure:
        """Run the stage, which must fail and leave nothing behind."""
        failure = self.fails_again(**changes)
        assert not self.data.exists()
        assert {path.name for path in self.root.glob("job/*")} <= {"claims", "adapter"}
        assert not list(self.root.glob("job/.*"))
        folders = ("cache", "judges", "job/adapter")
        left = [path for name in folders for path in self.root.glob(f"{name}/*")]
        assert not left, "a model that was refused leaves nothing behind"
        return failure

    def fails_again(self, **changes: Any) -> Failure:
        """Run the stage, which must fail; an earlier run may have left something."""
        with pytest.raises(UserError) as caught:
            self.prepare(**changes)
        assert caught.value.failure.remedy
        return caught.value.failure

    def manifest(self) -> dict[str, Any]:
        """The manifest of the data."""
        found = json.loads((self.data / "manifest.json").read_text())
        assert isinstance(found, dict)
        return found


def run_as_pod(
    world: World, spec: Mapping[str, Any] | None = None, **environ: str
) -> tuple[int, StageResult, str]:
    """Run the stage as the process of a pod; returns its exit code, its result and its log."""
    run_file, result_file = world.root / "run.json", world.root / "result.json"
    run_file.write_text(world.run_config(**(spec or {})).model_dump_json(by_alias=True))
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.prepare"],
        env={
            "PATH": os.defpath,
            "HOME": "/nonexistent",
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
            "TMPDIR": str(world.root),
            "FINETUNE_RUN_CONFIG": str(run_file),
            "FINETUNE_TERMINATION_PATH": str(result_file),
            "FINETUNE_TELEMETRY_PORT": "0",
            **environ,
        },
        capture_output=True,
        text=True,
    )
    result = StageResult.model_validate_json(result_file.read_bytes())
    return done.returncode, result, done.stdout + done.stderr


def use_model(hub: Hub, folder: Path, config: dict[str, Any] | None = None) -> None:
    """Let the hub offer the model in `folder`, with some of its config changed."""
    if config is not None:
        path = folder / "config.json"
        changed = {**json.loads(path.read_text()), **config}
        kept = {name: value for name, value in changed.items() if value is not None}
        path.write_text(json.dumps(kept))
    hub.repositories["acme/tiny"] = Repository(folder)


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Rows with one question and one answer."""
    return [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(count)
    ]


def facts_of(result: StageResult) -> DataFacts:
    """The facts about the data."""
    assert result.data is not None
    return result.data


def found(result: StageResult) -> tuple[Any, ...]:
    """The facts in a result, which do not depend on the attempt."""
    return result.model, result.data, result.reward


def held_out(world: World) -> list[dict[str, Any]]:
    """The held-out prompts, with their references."""
    return read_json_lines(world.data / "eval.jsonl")


def stores(world: World) -> tuple[TokenStore, TokenStore]:
    """The stores of the training and of the held-out sequences."""
    return TokenStore.open(world.data / "train"), TokenStore.open(world.data / "eval")


def trained_text(tokenizer: Any, row: Any) -> str:
    """The text of the tokens that have labels."""
    return str(tokenizer.decode(row.labels[row.labels != IGNORED]))
