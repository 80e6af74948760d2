"""Training by one rank and the export of its result, in this process, on a model of the test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.run_config import RunConfig
from finetune_trainer import export
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.runtime.telemetry import RankFile, Report
from finetune_trainer.training import worker
from torch import distributed as dist

from tests.trainer.jobs import NoStop, make_run, write_data


@contextlib.contextmanager
def single_rank(folder: Path) -> Iterator[None]:
    """This process as the only rank of a process group."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(
    root: Path, model: Path, steps: int = 2, max_length: int = 96, **settings: Any
) -> RunConfig:
    """Train on invented rows, packed up to `max_length` tokens; `settings` are those of `make_run`.

    Returns the run of export.
    """
    write_data(root / "job" / "data", model, max_length=max_length)
    run = make_run(root, model, world_size=1, steps=steps, **settings)
    finished, _ = worker.train(run, RankReporter(RankFile(root, 0)), NoStop())
    assert finished
    return make_run(root, model, stage="export", world_size=1, steps=steps, **settings)


def train_and_export(root: Path, model: Path, **settings: Any) -> Path:
    """The artifact's folder."""
    run = train(root, model, **settings)
    artifact = root / "artifact"
    artifact.mkdir()
    result = export.export(run, Report("export", 1))
    assert result.outcome == "Succeeded"
    return artifact
