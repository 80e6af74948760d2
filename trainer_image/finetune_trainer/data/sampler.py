"""TODO."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import TrainPlan
from torch import distributed as dist

from finetune_trainer.data.token_store import PackedSequence, TokenStore

Unit = TypeVar("Unit")


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in one pass; the last one may be smaller."""
    return -(-rows // batch_size)


def epoch_steps(spec: FineTuneJobSpec, plan: TrainPlan, sequences: int) -> int:
    """Optimizer steps in one pass over the data; with GRPO a prompt has several answers, and they
    are learnt from several times."""
    if spec.objective != "GRPO" or spec.grpo is None:
        return steps_per_epoch(sequences, plan.batch_size)
    return steps_per_epoch(sequences, plan.batch_size // spec.grpo.generations) * spec.grpo.updates


def units_of(units: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Which of `units` rows, or pairs of rows, a step has, counted from 1, over all ranks."""
    epoch, index = divmod(step - 1, steps_per_epoch(units, batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(units)
    return [int(unit) for unit in order[index * batch_size : (index + 1) * batch_size]]


def units_until(units: int, steps: int, batch_size: int, seed: int) -> list[int]:
    """Every unit that the first `steps` steps have, in ascending order."""
    if steps >= steps_per_epoch(units, batch_size):
        return list(range(units))
    first = range(1, steps + 1)
    return sorted(unit for step in first for unit in units_of(units, step, batch_size, seed))


def seed_of(seed: int, step: int, rank: int) -> int:
    """What dropout and sampling of a step start from; so there is no random state to restore."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def global_batch(store: TokenStore, step: int, batch_size: int, seed: int) -> list[PackedSequence]:
    """The rows of a step, counted from 1, over all ranks; longest first.

    Sorting changes no sum, and gives ranks and micro-batches rows of about equal length.
    """
    chosen = [store.row(unit) for unit in units_of(store.rows, step, batch_size, seed)]
    return sorted(chosen, key=lambda row: -len(row.input_ids))


def deal(units: Sequence[Unit], size: int) -> list[list[Unit]]:
    """This rank's units in lists of `size`; every rank has as many lists, some may be empty."""
    rank, world = dist.get_rank(), dist.get_world_size()
    count = -(-len(units) // (world * size))
    mine = list(units[rank::world])
    return [mine[i * size : (i + 1) * size] for i in range(count)]
