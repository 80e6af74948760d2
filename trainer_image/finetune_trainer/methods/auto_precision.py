"""training.precision Auto: bf16 where every device of the job computes it fast, else fp32.

The first attempt decides and records the decision in the job's folder. Later attempts, the
reference logps and the merge of a four-bit base use the recorded one, so a job is trained in one
precision on whichever nodes its attempts run.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from finetune_api.run_config import RunConfig
from finetune_api.train_plan import MemoryEstimate
from finetune_api.training import ComputePrecision
from torch import distributed as dist

from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.name_cache import wait_for_file

log = logging.getLogger("finetune")

FILE_NAME = "precision.json"
MATMUL_SHAPE = (128, 1024, 1024)
"""Rows, inner size and columns of the product that is timed: the work of a small layer."""
ROUNDS, SECONDS = 16, 1.0
"""Other load lengthens a product, so the fastest of ROUNDS counts. A CPU without bf16 instructions
can take a second for one, and two rounds then show it."""
BF16_CAPABILITY = (8, 0)
"""CUDA compute capability from which on tensor cores multiply bf16; older ones emulate it."""


def decide_precision(run: RunConfig, device: torch.device) -> RunConfig:
    """The run with bf16, fp16 or fp32 in place of Auto, the same on every rank.

    A collective, after rank 0 has claimed the attempt.
    """
    if run.spec.training.precision != "Auto":
        return run
    recorded = read_decision(run) if dist.get_rank() == 0 else None
    decided = collectives.broadcast_from_rank_zero(recorded)
    if decided is None:
        is_slow = not prefers_bf16(device, run.require_plan().memory)
        decided = "fp32" if collectives.any_rank(is_slow) else "bf16"
        attempt = Attempt(Path(run.paths.job), run.attempt)
        if dist.get_rank() == 0:
            content = json.dumps({"precision": decided}).encode()
            attempt.publish_file(attempt.job / FILE_NAME, content)
    log.info("Precision chosen", extra={"precision": decided, "device": str(device)})
    return with_precision(run, decided)


def require_decided(run: RunConfig) -> RunConfig:
    """The run with the precision that it was trained in.

    Raises RetryableError NoTrainedWeights where training recorded none.
    """
    if run.spec.training.precision != "Auto":
        return run
    path = Path(run.paths.job) / FILE_NAME
    decided = read_decision(run) if wait_for_file(path) else None
    if decided is None:
        raise RetryableError(
            "NoTrainedWeights",
            "Training recorded no precision.",
            "Check the workspace's storage.",
            file=str(path),
        )
    return with_precision(run, decided)


def read_decision(run: RunConfig) -> ComputePrecision | None:
    """The precision that an earlier attempt recorded; None where there is none."""
    try:
        recorded = json.loads((Path(run.paths.job) / FILE_NAME).read_bytes())["precision"]
    except FileNotFoundError:
        return None
    known: dict[str, ComputePrecision] = {name: name for name in get_args(ComputePrecision)}
    return known[recorded]


def with_precision(run: RunConfig, precision: ComputePrecision) -> RunConfig:
    """The run as if the user had set this precision."""
    training = {**run.raw_spec.get("training", {}), "precision": precision}
    return run.model_copy(update={"raw_spec": {**run.raw_spec, "training": training}})


def prefers_bf16(device: torch.device, memory: MemoryEstimate) -> bool:
    """Whether this rank's device should compute in bf16."""
    if device.type == "cuda":
        return gpu_prefers_bf16(torch.cuda.get_device_capability(device), memory)
    bf16, fp32 = fastest_matmuls((torch.bfloat16, torch.float32))
    return bf16 <= fp32


def gpu_prefers_bf16(capability: tuple[int, int], memory: MemoryEstimate) -> bool:
    """Whether a GPU of this CUDA compute capability should compute in bf16.

    A GPU pool is planned for bf16, so an old GPU gets fp32 only where twice the planned memory
    fits: no state or activation grows more than that.
    """
    return capability >= BF16_CAPABILITY or 2 * memory.total > memory.available


def fastest_matmuls(dtypes: Sequence[torch.dtype]) -> list[float]:
    """Seconds of the fastest product of this rank's CPU threads in each format."""
    rows, inner, columns = MATMUL_SHAPE
    fastest, began = [float("inf")] * len(dtypes), time.perf_counter()
    for count in range(ROUNDS):
        if count >= 2 and time.perf_counter() - began > SECONDS:
            break
        for index, dtype in enumerate(dtypes):
            left = torch.ones(rows, inner, dtype=dtype)  # [rows, inner]
            right = torch.ones(inner, columns, dtype=dtype)  # [inner, columns]
            started = time.perf_counter()
            torch.mm(left, right)
            fastest[index] = min(fastest[index], time.perf_counter() - started)
    return fastest
