"""Which rows and which learning rate a step has.

Both follow from the plan, the seed and the step's number alone. So the same global batches
arise at any world size, and a resumed run needs to know nothing but its step.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from finetune_api.finetunejob import FineTuneJobSpec, Training
from finetune_api.run import TrainPlan
from torch import distributed as dist

from finetune_trainer.data.store import Row, TokenStore
from finetune_trainer.objectives.base import Share
from finetune_trainer.objectives.batches import collate, trained_tokens

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


def global_batch(store: TokenStore, step: int, batch_size: int, seed: int) -> list[Row]:
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


def share_of(rows: list[Row], size: int, flatten: bool) -> Share:
    """This rank's part of a global batch of rows, in micro-batches of `size` rows."""
    batches = [collate(members, flatten) for members in deal(rows, size)]
    tokens = sum(len(row.input_ids) for row in rows)
    return Share(batches, max(1, sum(trained_tokens(row) for row in rows)), tokens)


def learning_rate(step: int, plan: TrainPlan, settings: Training) -> float:
    """The rate of a step, counted from 1: linear warm-up, then the schedule's course.

    All but `constant` reach zero one step after the last. `wsd` stays at its peak and falls
    linearly over the last `decay_ratio` of all steps, or over what the warm-up leaves of them.
    """
    total, peak = plan.total_steps, plan.learning_rate
    warmup = math.ceil(settings.warmup_ratio * total)
    if step <= warmup:
        return float(peak * step / warmup)
    left = total - step + 1
    after = max(1, total - warmup)
    if settings.schedule == "constant":
        course = 1.0
    elif settings.schedule == "linear":
        course = left / after
    elif settings.schedule == "wsd":
        course = min(1.0, left / min(after, math.ceil(settings.decay_ratio * total)))
    else:
        course = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left / after)))
    return float(peak * course)
