"""This project's trainer: `worker.train` as a rank of its own calls it, from a run file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from finetune_api.run_config import RunConfig
from finetune_trainer import objectives
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.runtime.telemetry import RankFile
from finetune_trainer.training import worker
from torch import distributed as dist

from tests.bench.contenders.task import Task
from tests.bench.contenders.turns import Turns, plain_loss


def main() -> None:
    task = Task.read(sys.argv[1])
    run = RunConfig.model_validate_json(Path(task.run).read_bytes())
    folder = Path(task.work) / "ours"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = "0"
    worker.join_process_group(run)
    turns = Turns(task)
    stop = take_turns(turns)
    reporter = RankReporter(RankFile(folder, 0))
    worker.train(run, reporter, stop)
    dist.destroy_process_group()


def take_turns(turns: Turns) -> Any:
    """Replace the factory and the batches of the objective so that the trainer takes turns.

    Returns the stop request that the loop reads after every update, where a turn ends.
    """
    seen: dict[str, Any] = {"tokens": 0}
    make_objective = objectives.make_objective
    make_rank_batch = objectives.SFTObjective.make_rank_batch

    def make_and_keep_model(model: Any, *more: Any) -> Any:
        seen["loss"] = plain_loss(model)
        return make_objective(model, *more)

    def count_and_wait(self: Any, step: int) -> Any:
        rank_batch = make_rank_batch(self, step)
        seen["tokens"] = rank_batch.tokens
        if step == 1:
            turns.start(seen["loss"])
            turns.wait_for_turn()
        return rank_batch

    class Stop:
        """Never requested; the training loop reads it after every update."""

        @property
        def requested(self) -> bool:
            turns.finish_step(seen["tokens"], seen["loss"])
            turns.wait_for_turn()
            return False

        def defer_to_boundary(self) -> None:
            """No signal is handled here."""

    objectives.make_objective = make_and_keep_model
    objectives.SFTObjective.make_rank_batch = count_and_wait  # type: ignore[method-assign]
    return Stop()


if __name__ == "__main__":
    main()
