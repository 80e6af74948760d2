"""Learning curves of this trainer in bf16, in fp32 and with Auto: `make bench-precision`.

    python -m tests.bench.precision [--only bf16,fp32,Auto] [--steps N] [--sequence N]

The same model, rows, seed and order of the rows; the precisions take turns of one optimizer step,
so other load slows all alike. Prints Markdown for docs/benchmarks.md: a summary, and the loss of
every step but the last, which is recorded after the turns have ended.
ONEDNN_MAX_CPU_ISA=AVX512_CORE hides the bf16 instructions of a CPU that has them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.bench import trainer
from tests.bench.contenders.task import Task

PRECISIONS = ("bf16", "fp32", "Auto")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PRECISIONS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sequence", type=int, default=512)
    chosen = parser.parse_args()
    precisions = chosen.only.split(",")
    options = trainer.parse(["--steps", str(chosen.steps), "--sequence", str(chosen.sequence)])
    with tempfile.TemporaryDirectory(prefix="bench-precision-") as parent:
        tasks, contenders = [], []
        for precision in precisions:
            folder = Path(parent) / precision
            options.precision = precision
            tasks.append(trainer.prepare(folder, options))
            tasks[-1].write(folder / "task.json")
            contenders.append(trainer.start("ours", folder, here=False))
            contenders[-1].title = precision
        try:
            trainer.race(contenders, options.steps)
        finally:
            for contender in contenders:
                contender.process.kill()
                contender.process.wait()
        if any(contender.failed for contender in contenders):
            return 1
        options.precision = "of each column"
        print(trainer.describe_run(tasks[0], options))
        print(f"ONEDNN_MAX_CPU_ISA: {os.environ.get('ONEDNN_MAX_CPU_ISA', 'not set')}.\n")
        print(summary(contenders, tasks))
        print()
        print(curves(contenders, tasks))
    return 0


def summary(contenders: list[trainer.Contender], tasks: list[Task]) -> str:
    """A line for each precision: what it trained in, speed, memory, and the held-out loss."""
    lines = [
        "| Precision | Trained in | Tokens/s | Peak GB | Held-out loss |",
        "|---|---|---|---|---|",
    ]
    for contender, task in zip(contenders, tasks, strict=True):
        peak = max(report["peak_bytes"] for report in contender.steps) / 1e9
        first, last = (contender.reports[at]["held_out"] for at in (0, -1))
        lines.append(
            f"| {contender.title} | {trained_in(contender.title, task)} | {contender.speed:.0f} "
            f"| {peak:.2f} | {first:.3f} to {last:.3f} |"
        )
    return "\n".join(lines)


def trained_in(precision: str, task: Task) -> str:
    """The precision itself; for Auto, what the job decided and recorded."""
    if precision != "Auto":
        return precision
    decided = json.loads((Path(task.job) / "precision.json").read_text())["precision"]
    assert isinstance(decided, str)
    return decided


def curves(contenders: list[trainer.Contender], tasks: list[Task]) -> str:
    """A line for each step, with the training loss in each precision, in nats per token."""
    names = [contender.title for contender in contenders]
    lines = ["| Step | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for entries in zip(*(history(task) for task in tasks), strict=True):
        losses = " | ".join(f"{entry['loss']:.4f}" for entry in entries)
        lines.append(f"| {entries[0]['step']} | {losses} |")
    return "\n".join(lines)


def history(task: Task) -> list[dict[str, float]]:
    """What the job recorded of every step."""
    lines = (Path(task.job) / "report" / "train-1.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
