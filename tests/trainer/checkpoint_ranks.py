"""Ranks that train a plain network under the real DDP strategy and save checkpoints of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import Checkpointing, Method, Training
from finetune_trainer.checkpointing import restore
from finetune_trainer.checkpointing.checkpoint_folder import MARKER
from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.checkpointing.saver import Saver
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies.base import StrategyConfig
from finetune_trainer.strategies.ddp import DDPStrategy
from torch import distributed as dist

FINGERPRINT = {"run": "this"}


class Counter:
    """A stateful object with a number and a tensor."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {"count": 0, "tensor": torch.zeros(2)}

    def state_dict(self) -> Any:
        """The number and the tensor."""
        return self.saved

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over a number and a tensor."""
        self.saved = state_dict


class Rank:
    """One rank with a strategy around a network of `width` x 64 weights."""

    def __init__(self, job: Path, width: int, attempt: int = 1, **settings: Any) -> None:
        torch.manual_seed(0)
        config = StrategyConfig(
            strategy="DDP",
            method=Method(type="Full"),
            training=Training(precision="fp32"),
            device=torch.device("cpu"),
            learning_rate=1e-2,
            micro_batch_size=1,
            offload=False,
            autocast=False,
        )
        self.strategy = DDPStrategy(torch.nn.Sequential(torch.nn.Embedding(width, 64)), config)
        self.job, self.attempt, self.width = job, attempt, width
        self.counter = Counter()
        if dist.get_rank() == 0:
            Attempt(job, attempt).claim()
        collectives.barrier()
        checkpointing = Checkpointing(**settings)
        stateful = {"counter": self.counter}
        self.saver = Saver(job, attempt, self.strategy, FINGERPRINT, checkpointing, stateful)
        self.progress: dict[str, Any] = {}

    def step(self, step: int) -> float:
        """Train a step; returns its seconds."""
        started = time.monotonic()
        torch.manual_seed(step)
        with self.strategy.accumulate(is_last=True):
            rows = torch.randint(self.width, (4096,))
            self.strategy.backward(self.strategy.model(rows).pow(2).sum())
        self.saver.wait_for_staging()
        self.strategy.step(1e-2)
        self.progress |= self.saver.poll()
        return time.monotonic() - started

    def weights(self) -> torch.Tensor:
        """A copy of all weights."""
        return torch.cat([weight.flatten().clone() for _, weight in self.strategy.gather_weights()])

    def resume(self) -> TrainerState:
        """Restore the latest usable checkpoint."""
        stateful = {"counter": self.counter}
        return restore.restore_latest(self.job, self.attempt, self.strategy, FINGERPRINT, stateful)


def in_process_group(work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` in a process group, then destroy the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work(*arguments)
    collectives.barrier()
    dist.destroy_process_group()


def steps_of(job: Path) -> list[int]:
    """The steps of all published checkpoints."""
    return sorted(int(path.parent.name[5:]) for path in (job / "checkpoints").glob(f"*/*/{MARKER}"))


def corrupt(file: Path) -> None:
    """Change the last byte of a file."""
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


def write_marker_only(job: Path, attempt: int, step: int, **marker: Any) -> Path:
    """Write a checkpoint that has only a marker."""
    folder = job / "checkpoints" / str(attempt) / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps(marker))
    return folder
