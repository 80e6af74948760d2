"""A contender's side of `make bench-trainer`: it computes only when it is its turn.

All contenders run at the same time and take turns of one optimizer step each. So other load on the
machine slows all of them alike, and ratios are stable even where seconds are not. Work between two
turns (collating the next batch) counts as time of the step; waiting for the turn does not.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from tests.bench.contenders.task import Task

EVALUATION_BATCH = 4
"""Held-out samples in a forward pass: few, so that evaluation never causes the peak memory."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From ids and shifted labels, int64 [batch, length] (-100 is ignored), to the summed loss."""


class Turns:
    """Waits for turns and reports the cost of each step, over two inherited pipes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._commands: TextIO = os.fdopen(int(os.environ["TURNS_IN"]), "r")
        self._reports: TextIO = os.fdopen(int(os.environ["TURNS_OUT"]), "w")
        self._since = time.perf_counter()
        self._waited = 0.0
        self._step = 0

    def start(self, compute_loss: Loss) -> None:
        """Evaluate the untrained model; call right before the work of the first step."""
        self._wait()
        self._send(held_out=self._evaluate(compute_loss), step=0)
        self._start_timer()

    def wait_for_turn(self) -> None:
        """Call before the forward pass of a step."""
        started = time.perf_counter()
        self._wait()
        self._waited += time.perf_counter() - started

    def finish_step(self, tokens: int, compute_loss: Loss) -> None:
        """Report a step of `tokens` tokens without padding; call after the optimizer's update."""
        if self._task.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._since - self._waited
        self._step += 1
        report: dict[str, Any] = {"step": self._step, "tokens": tokens, "seconds": seconds}
        report["peak_bytes"] = self._peak()
        if self._step % self._task.evaluate_every == 0:
            report["held_out"] = self._evaluate(compute_loss)
            self._reset_peak()
        self._send(**report)
        self._start_timer()

    def _start_timer(self) -> None:
        self._since, self._waited = time.perf_counter(), 0.0

    def _wait(self) -> None:
        if not self._commands.readline():
            sys.exit("the benchmark has ended")

    def _send(self, **values: Any) -> None:
        self._reports.write(json.dumps(values) + "\n")
        self._reports.flush()

    def _evaluate(self, compute_loss: Loss) -> float:
        total, count = 0.0, 0
        for ids, labels in held_out_batches(self._task):
            with torch.no_grad():
                total += float(compute_loss(ids, labels))
            count += int((labels != -100).sum())
        return total / count

    def _peak(self) -> int:
        if self._task.device == "cuda":
            return int(torch.cuda.max_memory_allocated())
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _reset_peak(self) -> None:
        if self._task.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def held_out_batches(task: Task) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and shifted labels of the first held-out samples, padded, longest first."""
    folder = Path(task.job) / "data" / "eval"
    names = ("tokens", "labels", "offsets")
    tokens, labels, offsets = (np.load(folder / f"{name}.npy") for name in names)
    spans = [slice(*pair) for pair in itertools.pairwise(offsets)]
    chosen = sorted(spans[: task.held_out_samples], key=lambda s: s.start - s.stop)
    batches = []
    for first in range(0, len(chosen), EVALUATION_BATCH):
        part = chosen[first : first + EVALUATION_BATCH]
        length = part[0].stop - part[0].start
        ids = torch.zeros(len(part), length, dtype=torch.int64)
        shifted = torch.full((len(part), length), -100, dtype=torch.int64)
        for index, span in enumerate(part):
            count = span.stop - span.start
            ids[index, :count] = torch.from_numpy(tokens[span].astype(np.int64))
            shifted[index, : count - 1] = torch.from_numpy(labels[span][1:].astype(np.int64))
        batches.append((ids.to(task.device), shifted.to(task.device)))
    return batches


def plain_loss(model: Any) -> Loss:
    """Summed loss of a causal language model of transformers, by its logits."""

    def loss(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        was_training = model.training
        model.eval()
        # Causal attention does not see padding, which is at the end of a sequence.
        logits = model(input_ids=ids, use_cache=False).logits.float()
        model.train(was_training)
        flat = logits.flatten(0, 1), labels.flatten()
        return torch.nn.functional.cross_entropy(*flat, reduction="sum")

    return loss
