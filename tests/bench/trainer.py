"""Speed of training compared with TRL, LLaMA-Factory and a hand-written loop: `make bench-trainer`.

    python -m tests.bench.trainer [--only ours,loop] [--steps N] [--method LoRA|Full]
        [--precision bf16|fp32|Auto] [--device cuda --model FOLDER --here]

All contenders train the same model on the same rows with the same optimizer settings, each in a
process of its own. They take turns of one optimizer step, in an order that rotates, so other load
on the machine slows all of them alike. Prints Markdown for docs/benchmarks.md. `--here` runs all of
them with the current interpreter, for a machine whose image has the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig
from finetune_operator.planner.training_plan import plan_training

from hack.demo import assets
from hack.images.venv import ml_python
from tests.bench.contenders.environments import python_of
from tests.bench.contenders.task import Task

ROOT = Path(__file__).resolve().parents[2]
CONTENDERS: dict[str, tuple[str, str, Callable[[], Path], tuple[str, ...]]] = {
    "ours": ("this trainer", "ours", ml_python, ()),
    "trl": ("TRL 1.16.0, its defaults", "trl_script", lambda: python_of("trl"), ()),
    "loop": ("hand-written PyTorch loop", "loop", ml_python, ()),
    "llamafactory": (
        "LLaMA-Factory 0.9.5, its defaults",
        "llamafactory_script",
        lambda: python_of("llamafactory"),
        (),
    ),
    "trl-equal": (
        "TRL, packed, activations kept",
        "trl_script",
        lambda: python_of("trl"),
        ("--equal",),
    ),
    "llamafactory-equal": (
        "LLaMA-Factory, packed, activations kept",
        "llamafactory_script",
        lambda: python_of("llamafactory"),
        ("--equal",),
    ),
}
TRAIN_ROWS, HELD_OUT_ROWS = 1500, 24
WARM_UP = 2
"""First steps, which no figure includes: allocators and threads warm up."""


@dataclass
class Contender:
    """A process that waits for its turns, and what it has reported."""

    name: str
    title: str
    process: subprocess.Popen[bytes]
    commands: TextIO
    replies: TextIO
    log: Path
    reports: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False

    def run_step(self) -> None:
        """Let it run one step; a contender that died gets no more turns."""
        try:
            self.commands.write("go\n")
            self.commands.flush()
            line = self.replies.readline()
        except BrokenPipeError:
            line = ""
        if line:
            self.reports.append(json.loads(line))
        else:
            self.failed = True
            tail = self.log.read_text(errors="replace")[-1500:]
            print(f"{self.title} failed:\n{tail}", file=sys.stderr)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Reports of the steps after warm-up."""
        return [report for report in self.reports if report["step"] > WARM_UP]

    @property
    def speed(self) -> float:
        """Non-padding tokens per second."""
        return sum(t["tokens"] for t in self.steps) / sum(t["seconds"] for t in self.steps)

    def seconds_to(self, loss: float) -> float | None:
        """Training time until the held-out loss is that low, interpolated between evaluations."""
        spent, before = 0.0, (0.0, float("inf"))
        for report in self.reports:
            spent += report.get("seconds", 0.0)
            if (seen := report.get("held_out")) is None:
                continue
            if seen <= loss:
                (then, worse) = before
                return then + (spent - then) * (worse - loss) / (worse - seen)
            before = (spent, seen)
        return None


def main() -> int:
    options = parse()
    names = options.only.split(",")
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as folder:
        task = prepare(Path(folder), options)
        task.write(Path(folder) / "task.json")
        contenders = [start(name, Path(folder), options.here) for name in names]
        try:
            race(contenders, task.steps)
        finally:
            for contender in contenders:
                contender.process.kill()
                contender.process.wait()
        print(report(task, contenders, options))
    return int(any(contender.failed for contender in contenders))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--method", choices=["LoRA", "Full"], default="LoRA")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", type=Path, help="default: the demo's SmolLM2-135M-Instruct")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch-rows", type=int, default=2)
    parser.add_argument("--memory", default="12Gi", help="of the device, for the planner")
    parser.add_argument("--peak-flops", type=float, help="of the device, bf16; prints our MFU")
    parser.add_argument(
        "--recompute", action="store_true", help="activations, in ours and the loop"
    )
    parser.add_argument(
        "--precision",
        choices=["bf16", "fp32", "Auto"],
        default="bf16",
        help="of all contenders; Auto is ours alone, the others train in bf16",
    )
    parser.add_argument("--here", action="store_true")
    return parser.parse_args(arguments)


def prepare(folder: Path, options: argparse.Namespace) -> Task:
    """Run the product's prepare stage on the data, and plan with its planner."""
    model = options.model or assets.model()
    rows = assets.dataset().read_text().splitlines()
    random.Random(0).shuffle(rows)
    volume = folder / "pvc" / "bench"
    volume.mkdir(parents=True)
    shutil.copytree(model, volume / "model")
    (volume / "train.jsonl").write_text("\n".join(rows[:TRAIN_ROWS]) + "\n")
    held_out = rows[TRAIN_ROWS : TRAIN_ROWS + 4 * HELD_OUT_ROWS]
    (volume / "eval.jsonl").write_text("\n".join(held_out) + "\n")
    lora = {"rank": 16, "alpha": 32, "dropout": 0.0}
    spec = {
        "model": {"uri": "pvc://bench/model"},
        "dataset": {
            "train": [{"uri": "pvc://bench/train.jsonl"}],
            "validation": {"uri": "pvc://bench/eval.jsonl"},
        },
        "method": {"type": options.method, **({"lora": lora} if options.method == "LoRA" else {})},
        "training": {
            "maxSteps": options.steps,
            "epochs": 100,
            "batchSize": options.batch_rows,
            "maxSequenceLength": options.sequence,
            "learningRate": 2e-3 if options.method == "LoRA" else 1e-4,
            "gradientCheckpointing": options.recompute,
            "precision": options.precision,
            "checkpoint": {"intervalSteps": 100_000},
        },
    }
    paths = {"modelCache": folder / "cache", "job": folder / "job", "volumes": folder / "pvc"}
    run = {
        "job": {"name": "bench", "namespace": "bench", "uid": "0" * 8},
        "stage": "prepare",
        "attempt": 1,
        "spec": spec,
        "paths": {name: str(path) for name, path in paths.items()},
    }
    found = run_prepare(run, folder, interpreter(ml_python, options.here))
    planned = plan(spec, found, options)
    run |= {"stage": "train", "model": found["model"], "data": found["data"], "plan": planned}
    config = RunConfig.model_validate(run)
    (folder / "run.json").write_text(config.model_dump_json(by_alias=True, exclude_none=True))
    facts = found["data"]
    samples_per_sequence = facts["trainExamples"] / facts["trainSequences"]
    return Task(
        model=str(volume / "model"),
        train_file=str(volume / "train.jsonl"),
        job=str(folder / "job"),
        run=str(folder / "run.json"),
        work=str(folder),
        method=options.method,
        precision="fp32" if options.precision == "fp32" else "bf16",
        gradient_checkpointing=options.recompute,
        device=options.device,
        max_length=options.sequence,
        batch_sequences=options.batch_rows,
        micro_batch_size=planned["microBatchSize"],
        batch_samples=round(options.batch_rows * samples_per_sequence),
        steps=options.steps,
        learning_rate=planned["learningRate"],
        rank=16,
        alpha=32,
        seed=42,
        evaluate_every=max(1, options.steps // 5),
        held_out_samples=HELD_OUT_ROWS,
    )


def run_prepare(run: dict[str, Any], folder: Path, python: Path) -> dict[str, Any]:
    """Run the prepare stage; returns the facts about model and data."""
    (folder / "prepare.json").write_text(json.dumps(run))
    result_path = folder / "prepared.json"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
        "FINETUNE_RUN_CONFIG": str(folder / "prepare.json"),
        "FINETUNE_TERMINATION_PATH": str(result_path),
        "FINETUNE_TELEMETRY_PORT": "0",
    }
    command = [str(python), "-m", "finetune_trainer.prepare"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"prepare failed:\n{done.stderr[-3000:]}")
    found = json.loads(result_path.read_text())
    assert isinstance(found, dict)
    return found


def plan(
    spec: dict[str, Any], found: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The operator's plan for one device with this much memory."""
    profile = AcceleratorProfileSpec.model_validate(
        {
            "memoryPerDevice": options.memory,
            "resourceName": "nvidia.com/gpu" if options.device == "cuda" else None,
            "peakFlopsPerDevice": options.peak_flops,
        }
    )
    model, data = (
        ModelFacts.model_validate(found["model"]),
        DataFacts.model_validate(found["data"]),
    )
    chosen = plan_training(FineTuneJobSpec.model_validate(spec), model, data, "bench", profile)
    if isinstance(chosen, Failure):
        raise SystemExit(f"no plan: {chosen.message}")
    wire = chosen.to_wire()
    assert isinstance(wire, dict)
    return wire


def interpreter(choose: Callable[[], Path], here: bool) -> Path:
    """The contender's own interpreter, or the current one with `--here`."""
    return Path(sys.executable) if here else choose()


def start(name: str, folder: Path, here: bool) -> Contender:
    """Start a contender; contenders load their libraries and models at the same time."""
    title, module, choose, arguments = CONTENDERS[name]
    child_in, parent_out = os.pipe()
    parent_in, child_out = os.pipe()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
        # As in the product, for all contenders: spinning threads would slow the one that computes.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "huggingface"),
        "TURNS_IN": str(child_in),
        "TURNS_OUT": str(child_out),
    }
    log = folder / f"{name}.log"
    command = [str(interpreter(choose, here)), "-m", f"tests.bench.contenders.{module}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(folder / "task.json"), *arguments],
            env=environment,
            pass_fds=(child_in, child_out),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    os.close(child_in)
    os.close(child_out)
    return Contender(name, title, process, os.fdopen(parent_out, "w"), os.fdopen(parent_in), log)


def race(contenders: Sequence[Contender], steps: int) -> None:
    """An evaluation of the untrained model, then all steps; the order of each round rotates."""
    for number in range(steps + 1):
        for place in range(len(contenders)):
            contender = contenders[(number + place) % len(contenders)]
            if not contender.failed:
                contender.run_step()
        print(f"step {number} of {steps}", file=sys.stderr)


def report(task: Task, contenders: Sequence[Contender], options: argparse.Namespace) -> str:
    """Markdown: machine and task, and one line for each contender."""
    alive = [contender for contender in contenders if not contender.failed]
    ours = next((contender for contender in alive if contender.name == "ours"), alive[0])
    target = max(contender.reports[-1]["held_out"] for contender in alive) + 0.005
    lines = [
        describe_run(task, options),
        "",
        f"| Contender | Tokens/s | Ours is faster by (quartiles) | Peak GB | Seconds to held-out "
        f"loss {target:.2f} | Held-out loss at the end |",
        "|---|---|---|---|---|---|",
    ]
    for contender in alive:
        low, middle, high = speed_ratios(ours, contender)
        peak = max(report["peak_bytes"] for report in contender.steps) / 1e9
        took = contender.seconds_to(target)
        lines.append(
            f"| {contender.title} | {contender.speed:.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) "
            f"| {peak:.2f} | {f'{took:.0f}' if took else 'not reached'} "
            f"| {contender.reports[0]['held_out']:.3f} to {contender.reports[-1]['held_out']:.3f} |"
        )
    if options.peak_flops and ours.name == "ours":
        history = (Path(task.job) / "report" / "train-1.jsonl").read_text().splitlines()
        lines.append(f"\nOur model FLOP/s utilisation: {json.loads(history[-1])['mfu']:.2f}")
    return "\n".join(lines)


def describe_run(task: Task, options: argparse.Namespace) -> str:
    """Date, machine and task in one sentence."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[1]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, {task.device}, load average {load:.0f}. "
        f"{options.model.name if options.model else assets.MODEL_NAME}, {task.method}, "
        f"{task.steps} steps "
        f"of {task.batch_sequences} x {task.max_length} tokens ({task.batch_samples} samples), "
        f"precision {options.precision}, {task.micro_batch_size} sequences in a forward pass, "
        f"activations of this trainer and of the loop "
        f"{'recomputed' if task.gradient_checkpointing else 'kept'}."
    )


def speed_ratios(ours: Contender, other: Contender) -> tuple[float, float, float]:
    """Quartiles over the rounds of our speed divided by that of the other contender."""
    pairs = zip(ours.steps, other.steps, strict=True)
    each = [
        (mine["tokens"] / mine["seconds"]) / (theirs["tokens"] / theirs["seconds"])
        for mine, theirs in pairs
    ]
    low, middle, high = statistics.quantiles(each, n=4)
    return low, middle, high


if __name__ == "__main__":
    sys.exit(main())
