"""Which sequences each optimizer step trains on, and which of them this rank takes.

Everything follows from the seed and the number of the step: the same step has the same global batch
at any world size and after any restart, and no position in the data has to be saved.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.train_plan import TrainPlan
from torch import distributed as dist

from finetune_trainer.data.token_store import PackedSequence, TokenStore

Item = TypeVar("Item")


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps in one pass over `count` items; the last one may be smaller."""
    return -(-count // batch_size)


def optimizer_steps_per_epoch(spec: FineTuneJobSpec, plan: TrainPlan, sequences: int) -> int:
    """Optimizer steps in one pass over the data; GRPO samples several answers to a prompt, and
    learns from them `updates` times."""
    if spec.objective != "GRPO" or spec.grpo is None:
        return steps_per_epoch(sequences, plan.batch_size)
    return steps_per_epoch(sequences, plan.batch_size // spec.grpo.generations) * spec.grpo.updates


def step_indices(count: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Which of `count` sequences, pairs or prompts are in the global batch of a step, which is
    counted from 1."""
    epoch, index = divmod(step - 1, steps_per_epoch(count, batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [int(item) for item in order[index * batch_size : (index + 1) * batch_size]]


def indices_until(count: int, steps: int, batch_size: int, seed: int) -> list[int]:
    """Every index that the first `steps` steps train on, in ascending order."""
    if steps >= steps_per_epoch(count, batch_size):
        return list(range(count))
    first = range(1, steps + 1)
    return sorted(index for step in first for index in step_indices(count, step, batch_size, seed))


def derive_step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of dropout and sampling in a step, so that no generator state has to be restored."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def global_batch(store: TokenStore, step: int, batch_size: int, seed: int) -> list[PackedSequence]:
    """The sequences of a step, which is counted from 1, over all ranks; longest first.

    Sorting changes no sum, and gives ranks and micro-batches sequences of about equal length.
    """
    indices = step_indices(store.sequence_count, step, batch_size, seed)
    sequences = [store.sequence(index) for index in indices]
    return sorted(sequences, key=lambda sequence: -len(sequence.input_ids))


def split_into_micro_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """This rank's part of a global batch in micro-batches of `size`.

    Every rank has as many micro-batches as the others, so some may be empty.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    count = -(-len(items) // (world * size))
    mine = list(items[rank::world])
    return [mine[i * size : (i + 1) * size] for i in range(count)]
