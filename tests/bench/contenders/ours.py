"""This project's trainer: `worker.train` as a rank of its own calls it, from a run file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from finetune_api.run import RunConfig
from finetune_trainer import objectives
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.runtime.telemetry import RankFile
from finetune_trainer.training import worker
from torch import distributed as dist

from tests.bench.contenders.setting import Setting
from tests.bench.contenders.turns import Turns, plain_loss


def main() -> None:
    setting = Setting.read(sys.argv[1])
    run = RunConfig.model_validate_json(Path(setting.run).read_bytes())
    folder = Path(setting.work) / "ours"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = "0"
    worker.join_process_group(run)
    turns = Turns(setting)
    watched = watch(turns)
    reporter = RankReporter(RankFile(folder, 0))
    worker.train(run, reporter, watched)
    dist.destroy_process_group()


def watch(turns: Turns) -> Any:
    """What the loop asks after every update, here to tell the turn and wait for the next."""
    seen: dict[str, Any] = {"tokens": 0}
    make, share = objectives.make_objective, objectives.SFTObjective.share

    def made(model: Any, *more: Any) -> Any:
        seen["loss"] = plain_loss(model)
        return make(model, *more)

    def counted(self: Any, step: int) -> Any:
        part = share(self, step)
        seen["tokens"] = part.tokens
        if step == 1:
            turns.start(seen["loss"])
            turns.begin()
        return part

    class Stop:
        """Never requested; the training loop reads it after every update."""

        @property
        def requested(self) -> bool:
            turns.end(seen["tokens"], seen["loss"])
            turns.begin()
            return False

        def defer_to_boundary(self) -> None:
            """No signal is handled here."""

    objectives.make_objective = made
    objectives.SFTObjective.share = counted  # type: ignore[method-assign]
    return Stop()


if __name__ == "__main__":
    main()
