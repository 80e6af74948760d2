"""Seconds from the start of a trainer to its first step, compared with torchrun.

    make bench-cold-start

Both launchers train a tiny model with LoRA under DDP in two processes, in turn. torchrun's ranks
also import bitsandbytes, as PEFT does if it is installed. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from finetune_trainer.distributed.startup_timer import START_TIME_ENV
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV, read_rank_files

from tests.trainer.jobs import environment, free_port, make_run, write_data, write_run
from tests.trainer.tiny import tiny_model

PARTS = ("launch", "imports", "rendezvous", "model", "wrap", "data", "checkpoint", "first_step")


def main(rounds: int) -> None:
    """Print the median of every part of the start for both launchers."""
    found: dict[str, list[dict[str, float]]] = {"launch": [], "torchrun": []}
    with tempfile.TemporaryDirectory(prefix="cold-start-") as folder:
        root = Path(folder)
        model = tiny_model(root / "models" / "tiny")
        for number in range(2 * rounds):
            launcher = ("torchrun", "launch")[(number + number // 2) % 2]
            found[launcher].append(start_once(launcher, root / str(number), model))
    processors, load = os.cpu_count(), os.getloadavg()[1]
    print(f"{datetime.now(UTC):%Y-%m-%d}, {processors} cores, load average {load:.0f}, ", end="")
    print(f"median of {rounds} starts each. Seconds:\n")
    print("| Part | with torchrun | now |\n|---|---|---|")
    for part in (*PARTS, "in all"):
        cells = [statistics.median(amount(each, part) for each in found[r]) for r in found]
        print(f"| {part.replace('_', ' ')} | {cells[1]:.1f} | {cells[0]:.1f} |")


def amount(start: dict[str, float], part: str) -> float:
    """Seconds of a part, or of all of them."""
    return sum(start.values()) if part == "in all" else start.get(part, 0.0)


def start_once(launcher: str, root: Path, model: Path) -> dict[str, float]:
    """Start a trainer once; returns the seconds that rank 0 reports for each part of its start."""
    write_data(root / "job" / "data", model)
    ranks = root / "ranks"
    ranks.mkdir()
    run = make_run(root, model, world_size=2, steps=1)
    env = environment(
        FINETUNE_RUN_CONFIG=str(write_run(run, root / "run.json")),
        FINETUNE_TERMINATION_PATH=str(root / "result.json"),
        FINETUNE_TELEMETRY_PORT="0",
        FINETUNE_RENDEZVOUS_PORT=str(free_port()),
        TMPDIR=str(ranks),
    )
    command = [sys.executable, "-m", "finetune_trainer.train"]
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        command += ["--max-restarts", "0", __file__, "rank"]
        env |= {RANK_FOLDER_ENV: str(ranks), START_TIME_ENV: str(time.time())}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    _, log = process.communicate()
    if process.returncode:
        raise SystemExit(log[-3000:])
    if launcher == "torchrun":
        return dict(read_rank_files(ranks)[0]["start_seconds"])
    line = next(line for line in log.splitlines() if "First step finished" in line)
    parts = {name: float(value) for name, value in re.findall(r"(\w+)_seconds=([\d.e-]+)", line)}
    del parts["total"]
    return parts


def rank() -> None:
    """Run a rank that torchrun has started."""
    import bitsandbytes
    from finetune_trainer.training import worker

    assert bitsandbytes
    worker.main()


if __name__ == "__main__":
    if sys.argv[1:] == ["rank"]:
        rank()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
