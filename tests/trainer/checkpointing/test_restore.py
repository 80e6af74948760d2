"""Resuming at the same, a smaller or a larger world size, from checkpoints saved during training.

Runs that change their world size have no dropout: other ranks draw other masks. At the same world
size everything is exact, with any optimizer, precision or offload; test_strategies shows the same
for every method and strategy with dropout. A checkpoint that cannot be read is skipped.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.checkpointing import checkpoint_folder
from finetune_trainer.checkpointing.checkpoint_folder import MARKER
from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.runtime.errors import RetryableError

from tests.trainer import pool
from tests.trainer.checkpoint_ranks import Rank, corrupt, in_process_group, steps_of
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, make_run, to_json, write_data
from tests.trainer.strategies.test_strategies import METHODS, STRATEGIES, dropout_model
from tests.trainer.tiny import tiny_model

STEPS, STOP = 6, 3
CHANGES = (("LoRA", 2, 1), ("Full", 1, 2), ("LoRA", 2, 4), ("Full", 2, 4))
SETTINGS: dict[str, dict[str, Any]] = {
    "bf16 under ZeRO-1": {"strategy": "ZeRO1", "training": {"precision": "bf16"}},
    "bf16 under ZeRO-2": {"strategy": "ZeRO2", "training": {"precision": "bf16"}},
    "bf16 under ZeRO-3": {"strategy": "ZeRO3", "training": {"precision": "bf16"}},
    "bf16 under FSDP": {"strategy": "FSDP", "training": {"precision": "bf16"}},
    "fp16 under DDP": {"strategy": "DDP", "training": {"precision": "fp16"}},
    "fp16 under FSDP": {"strategy": "FSDP", "training": {"precision": "fp16"}},
    "offload under ZeRO-2": {"strategy": "ZeRO2", "offload": True},
    "offload under ZeRO-3": {"strategy": "ZeRO3", "offload": True},
    "offload under FSDP": {"strategy": "FSDP", "offload": True},
    "AdamW8bit": {"strategy": "DDP", "training": {"optimizer": "AdamW8bit"}},
    "PagedAdamW": {"strategy": "DDP", "training": {"optimizer": "PagedAdamW"}},
    "Adafactor": {"strategy": "DDP", "training": {"optimizer": "Adafactor"}},
    "AdaLoRA": {"strategy": "DDP", "method": "AdaLoRA"},
}


def make_case(root: Path, model: Path, name: str, **more: Any) -> dict[str, Any]:
    where = root / name
    if not where.exists():
        write_data(where / "job" / "data", model)
    stop = more.pop("stop_after", None)
    lora = {"dropout": 0.0} if more["method"] == "LoRA" else None
    offload = more.pop("offload", False)
    run = make_run(where, model, steps=STEPS, batch_size=8, lora=lora, **more)
    run = run.model_copy(
        update={"plan": run.require_plan().model_copy(update={"offload": offload})}
    )
    return {"name": f"{name}-{run.attempt}", "run": to_json(run), "stop_after": stop}


def run_cases(root: Path, label: str, world: int, cases: list[dict[str, Any]]) -> None:
    folder = root / label
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    pool.run(drive, folder / "cases.json", world=world, folder=folder)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method and strategy, stopped on some ranks and resumed on others."""
    root = tmp_path_factory.mktemp("resharded")
    model = tiny_model(root / "models" / "tiny")

    def under_all(method: str, name: str, world: int, **more: Any) -> list[dict[str, Any]]:
        return [
            make_case(
                root,
                model,
                f"{method}-{strategy}-{name}",
                method=method,
                strategy=strategy,
                world_size=world,
                **more,
            )
            for strategy in STRATEGIES
        ]

    straight = [one for method in METHODS for one in under_all(method, "straight", 2)]
    run_cases(root, "straight", 2, straight)
    for method, before, after in CHANGES:
        name = f"{before}-{after}"
        stopped = under_all(method, name, before, stop_after=STOP)
        run_cases(root, f"{method}-{name}-a", before, stopped)
        run_cases(root, f"{method}-{name}-b", after, under_all(method, name, after, attempt=2))
    return root


@pytest.mark.parametrize(("method", "before", "after"), CHANGES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_world_size_continues_with_the_same_losses(
    changed: Path, method: str, strategy: str, before: int, after: int
) -> None:
    straight = losses(changed / f"{method}-{strategy}-straight" / "job")
    job = changed / f"{method}-{strategy}-{before}-{after}" / "job"
    first, second = losses(job, 1), losses(job, 2)
    assert len(first) == STOP
    assert len(second) == STEPS - STOP
    assert first + second == pytest.approx(straight, abs=1e-4)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every setting: straight, stopped by a signal to one rank, and resumed."""
    root = tmp_path_factory.mktemp("settings")
    model = dropout_model(root)
    cases = []
    for name, how in SETTINGS.items():
        its = {"method": "Full", **how}
        cases += [
            make_case(root, model, f"{name} straight", **its),
            make_case(root, model, f"{name} stopped", stop_after=STOP, **its),
            make_case(root, model, f"{name} stopped", attempt=2, **its),
        ]
    run_cases(root, "cases", 2, cases)
    return root


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resume_is_exact_with_every_setting(settings: Path, name: str) -> None:
    straight = losses(settings / f"{name} straight" / "job")
    job = settings / f"{name} stopped" / "job"
    assert len(straight) == STEPS
    assert losses(job, 1) == straight[:STOP]
    assert losses(job, 2) == straight[STOP:]


def resume_before_corrupt(job: Path) -> None:
    """The newest checkpoint is corrupt, so the next attempt starts at an earlier step."""
    rank = Rank(job, 64, keepLast=1)
    rank.step(1)
    rank.saver.save(TrainerState(20))
    rank.saver.close()
    corrupt(job / "checkpoints" / "1" / "step-00000020" / "rank-00000.safetensors")
    later = Rank(job, 64, attempt=2, keepLast=1)
    assert later.resume().step == 0
    later.step(2)
    later.saver.save(TrainerState(10))
    later.saver.close()
    third = Rank(job, 64, attempt=3, keepLast=1)
    assert third.resume().step == 10
    third.saver.close()


def test_a_checkpoint_saved_after_a_corrupt_one_is_kept_although_its_step_is_lower(
    tmp_path: Path,
) -> None:
    pool.run(in_process_group, resume_before_corrupt, tmp_path, world=1, folder=tmp_path / "logs")


def save_twice(job: Path) -> None:
    """Save the checkpoints of steps 1 and 2 in a first attempt."""
    rank = Rank(job, 64, keepLast=2)
    for step in (1, 2):
        rank.step(step)
        rank.saver.save(TrainerState(step))
        rank.saver.wait_until_saved()
    rank.saver.close()


def fail_to_read_a_shard(job: Path) -> None:
    """Only the rank that reads the file gets the error of a bad block."""
    save_twice(job)
    readable, bad = checkpoint_folder.sha256_file, {"step-00000002"}

    def read(path: Path) -> str:
        if path.parent.name in bad and path.name == "rank-00001.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readable(path)

    checkpoint_folder.sha256_file = read
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 1
    # No other checkpoint is left: the volume may work again for the next attempt.
    bad.add("step-00000001")
    with pytest.raises(RetryableError) as caught:
        later.resume()
    assert caught.value.failure.reason == "VolumeUnavailable"
    later.saver.close()


def test_an_unreadable_file_skips_a_checkpoint_if_there_is_an_older_one(
    tmp_path: Path,
) -> None:
    pool.run(in_process_group, fail_to_read_a_shard, tmp_path, world=2, folder=tmp_path / "logs")


def fail_to_read_markers(job: Path) -> None:
    save_twice(job)
    readable, bad = Path.read_bytes, {"step-00000002"}

    def read(path: Path) -> bytes:
        if path.parent.name in bad and path.name == MARKER:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readable(path)

    setattr(Path, "read_bytes", read)  # noqa: B010
    later = Rank(job, 64, attempt=2, keepLast=2)
    assert later.resume().step == 1
    bad.add("step-00000001")
    with pytest.raises(RetryableError) as caught:
        later.resume()
    assert caught.value.failure.reason == "VolumeUnavailable"
    later.step(3)
    later.saver.save(TrainerState(3))
    later.saver.close()
    assert steps_of(job) == [2, 3]


def test_an_unreadable_marker_skips_a_checkpoint_if_there_is_an_older_one(
    tmp_path: Path,
) -> None:
    pool.run(in_process_group, fail_to_read_markers, tmp_path, world=1, folder=tmp_path / "logs")
