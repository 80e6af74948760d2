"""Which rows and which learning rate a step has.

Both follow from the plan, the seed and the step's number alone. So the same global batches
arise at any world size, and a resumed run needs to know nothing but its step.
"""

import math

import numpy as np
from finetune_api.finetunejob import Training
from finetune_api.run import TrainPlan
from torch import distributed as dist

from finetune_trainer.data.store import Row, TokenStore
from finetune_trainer.objectives.base import Share
from finetune_trainer.objectives.batches import collate, trained_tokens


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in one pass; the last one may be smaller."""
    return -(-rows // batch_size)


def global_batch(store: TokenStore, step: int, batch_size: int, seed: int) -> list[Row]:
    """The rows of a step, counted from 1, over all ranks; longest first.

    Sorting changes no sum, and gives ranks and micro-batches rows of about equal length.
    """
    epoch, index = divmod(step - 1, steps_per_epoch(store.rows, batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(store.rows)
    chosen = [store.row(int(i)) for i in order[index * batch_size : (index + 1) * batch_size]]
    return sorted(chosen, key=lambda row: -len(row.input_ids))


def share_of(rows: list[Row], size: int, flatten: bool) -> Share:
    """This rank's part of a global batch of rows, in micro-batches of `size` rows."""
    rank, world = dist.get_rank(), dist.get_world_size()
    count = -(-len(rows) // (world * size))
    mine = rows[rank::world]
    batches = [collate(mine[i * size : (i + 1) * size], flatten) for i in range(count)]
    tokens = sum(len(row.input_ids) for row in rows)
    return Share(batches, max(1, sum(trained_tokens(row) for row in rows)), tokens)


def learning_rate(step: int, plan: TrainPlan, settings: Training) -> float:
    """The rate of a step, counted from 1: linear warm-up, then the schedule's course to zero."""
    total, peak = plan.total_steps, plan.learning_rate
    warmup = math.ceil(settings.warmup_ratio * total)
    if step <= warmup:
        return float(peak * step / warmup)
    done = (step - warmup - 1) / max(1, total - warmup)
    course = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return float(peak * course[settings.schedule])
