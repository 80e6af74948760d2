"""How many files a flow passes, and how often it returns to one: `make bench-call-chains`.

Counts the Python calls inside our packages while a flow runs. A *return* is a call into another
file that the flow has already been in; a reader who follows the flow has to go back there. Calls
of properties count, comprehensions belong to the function around them. `--trainer` measures the
flows of the trainer and needs its libraries.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = ("finetune_api/", "finetune_operator/", "finetune_trainer/")


class Trace:
    """The files of our packages that calls enter, in order."""

    def __init__(self) -> None:
        self._files: list[str] = []

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        path = frame.f_code.co_filename
        if event != "call" or frame.f_code.co_name.startswith("<"):
            return
        for package in PACKAGES:
            if package in path:
                self._files.append(package + path.rsplit(package, 1)[1].removesuffix(".py"))

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        sys.setprofile(self)
        try:
            return call(*arguments)
        finally:
            sys.setprofile(None)

    def report(self, flow: str) -> None:
        entered: set[str] = set()
        last, returns = "", 0
        for file in self._files:
            returns += file != last and file in entered
            entered.add(file)
            last = file
        print(f"{flow}: {len(entered)} files, {returns} returns, {len(self._files)} calls")
        print("  " + " > ".join(dict.fromkeys(self._files)))


def trace_operator() -> None:
    """The plan of a job at three moments of its life."""
    from finetune_operator.jobs.plan import reconcile_job

    from tests.unit.jobs.world import World, result, training

    def trace(flow: str, world: World) -> None:
        trace = Trace()
        trace.run(reconcile_job, world.job, world, world.settings, world.now)
        trace.report(flow)

    trace("a new FineTuneJob -> the Job of prepare", World())
    world = World()
    world.settle()
    world.add_pods("glossary-prepare-1")
    world.succeed("prepare")
    trace("the StageResult of prepare -> the status, and the Job of train", world)
    world, pods = training()
    for pod in pods:
        world.mark_disrupted(pod, "EvictionByEvictionAPI")
        world.end_pod(pod, 76, result("train", outcome="Preempted"))
    trace("a gang that saved on SIGTERM -> its outcome in the status", world)


def trace_trainer() -> None:
    """Twelve rows to the token store, and one optimizer step."""
    from finetune_trainer import prepare
    from finetune_trainer.distributed.rank_reporter import RankReporter
    from finetune_trainer.runtime.telemetry import RankFile
    from finetune_trainer.training import worker
    from finetune_trainer.training.loop import Loop
    from torch import distributed as dist

    from tests.trainer.drive_training import StopAfter
    from tests.trainer.jobs import free_port, make_run, write_data
    from tests.trainer.prepare_world import World
    from tests.trainer.tiny import tiny_model, tiny_rows

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        trace, build = Trace(), prepare.build_dataset
        setattr(prepare, "build_dataset", lambda *a: trace.run(build, *a))  # noqa: B010
        world = World(root)
        world.rows("rows.jsonl", list(tiny_rows(12)))
        tiny_model(root / "pvc" / "data" / "model")
        world.prepare(model={"uri": "pvc://data/model"})
        trace.report("twelve rows of a file -> the token store")

        model = tiny_model(root / "models" / "tiny")
        write_data(root / "step" / "job" / "data", model)
        run = make_run(root / "step", model, world_size=1, batch_size=4)
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        dist.init_process_group("gloo")
        trace, step = Trace(), Loop._train_step

        def trace_third(loop: Loop, number: int, stop: Any) -> tuple[bool, bool]:
            return trace.run(step, loop, number, stop) if number == 3 else step(loop, number, stop)

        setattr(Loop, "_train_step", trace_third)  # noqa: B010
        (root / "ranks").mkdir()
        worker.train(run, RankReporter(RankFile(root / "ranks", 0)), StopAfter(None))
        dist.destroy_process_group()
        trace.report("the sequences of a global batch -> one optimizer step")


if __name__ == "__main__":
    trace_trainer() if "--trainer" in sys.argv else trace_operator()
