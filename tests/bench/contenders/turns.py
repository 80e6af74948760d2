"""A contender's side of `make bench-trainer`: it computes only when it is its turn.

All contenders live at the same time and do one optimizer step each, in turn. So whatever else the
machine does falls on all of them alike, and ratios hold where seconds do not. Work done between
two turns (collating the next batch) counts as time too; waiting for the turn does not.
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

from tests.bench.contenders.setting import Setting

LOOK_ROWS = 4
"""Held-out examples in a forward pass: few, so that looking never decides the peak memory."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From ids and targets, int64 [rows, length] (-100 where nothing counts), to the summed loss."""


class Turns:
    """Waits for turns and tells what each step took; talks over two inherited pipes."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._orders: TextIO = os.fdopen(int(os.environ["TURNS_IN"]), "r")
        self._answers: TextIO = os.fdopen(int(os.environ["TURNS_OUT"]), "w")
        self._since = time.perf_counter()
        self._waited = 0.0
        self._step = 0

    def start(self, loss_of: Loss) -> None:
        """Look at the untrained model; call right before the first step's work begins."""
        self._wait()
        self._tell(held_out=self._look(loss_of), step=0)
        self._begin_span()

    def begin(self) -> None:
        """Wait for the turn; call before a step's forward pass."""
        asked = time.perf_counter()
        self._wait()
        self._waited += time.perf_counter() - asked

    def end(self, tokens: int, loss_of: Loss) -> None:
        """Tell a step with so many non-padding tokens; call after the optimizer's update."""
        if self._setting.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._since - self._waited
        self._step += 1
        told: dict[str, Any] = {"step": self._step, "tokens": tokens, "seconds": seconds}
        told["peak_bytes"] = self._peak()
        if self._step % self._setting.look_every == 0:
            told["held_out"] = self._look(loss_of)
            self._forget_peak()
        self._tell(**told)
        self._begin_span()

    def _begin_span(self) -> None:
        self._since, self._waited = time.perf_counter(), 0.0

    def _wait(self) -> None:
        if not self._orders.readline():
            sys.exit("the benchmark is gone")

    def _tell(self, **values: Any) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    def _look(self, loss_of: Loss) -> float:
        total, count = 0.0, 0
        for ids, targets in held_out_batches(self._setting):
            with torch.no_grad():
                total += float(loss_of(ids, targets))
            count += int((targets != -100).sum())
        return total / count

    def _peak(self) -> int:
        if self._setting.device == "cuda":
            return int(torch.cuda.max_memory_allocated())
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _forget_peak(self) -> None:
        if self._setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def held_out_batches(setting: Setting) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and targets of the first held-out examples, padded, longest first."""
    folder = Path(setting.job) / "data" / "eval"
    names = ("tokens", "labels", "offsets")
    tokens, labels, offsets = (np.load(folder / f"{name}.npy") for name in names)
    spans = [slice(*pair) for pair in itertools.pairwise(offsets)]
    chosen = sorted(spans[: setting.held_out], key=lambda s: s.start - s.stop)
    batches = []
    for first in range(0, len(chosen), LOOK_ROWS):
        part = chosen[first : first + LOOK_ROWS]
        length = part[0].stop - part[0].start
        ids = torch.zeros(len(part), length, dtype=torch.int64)
        targets = torch.full((len(part), length), -100, dtype=torch.int64)
        for row, span in enumerate(part):
            count = span.stop - span.start
            ids[row, :count] = torch.from_numpy(tokens[span].astype(np.int64))
            targets[row, : count - 1] = torch.from_numpy(labels[span][1:].astype(np.int64))
        batches.append((ids.to(setting.device), targets.to(setting.device)))
    return batches


def plain_loss(model: Any) -> Loss:
    """Summed loss of a causal language model of transformers, by its logits."""

    def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        was_training = model.training
        model.eval()
        # Padding stands at the end of a row, where nothing before it can see it.
        logits = model(input_ids=ids, use_cache=False).logits.float()
        model.train(was_training)
        flat = logits.flatten(0, 1), targets.flatten()
        return torch.nn.functional.cross_entropy(*flat, reduction="sum")

    return loss
