"""How often each task of a mixture is seen: temperature sampling.

Source i with n examples gets a share of weight * n^(1/T) of an epoch (Raffel et al. 2020, arXiv
1910.10683, section 3.5.2), which has as many examples as all sources together. Shares become whole
numbers by largest remainder. A source that gets more than it has is repeated whole as often as that
goes, and the rest of its share is drawn without replacement; so is the share of one that gets less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_trainer.runtime.errors import UserError


@dataclass(frozen=True)
class Task:
    """One source of the mixture."""

    examples: int
    """What it has to learn from."""
    drawn: int
    """What an epoch takes of it."""


def shares(counts: Sequence[int], weights: Sequence[float], temperature: float) -> list[int]:
    """Examples of each source in an epoch; they sum to as many as there are.

    Raises UserError where a source would give none.
    """
    raw = np.asarray(weights) * np.asarray(counts, dtype=np.float64) ** (1 / temperature)
    exact = raw / raw.sum() * sum(counts)
    drawn = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(drawn - exact, kind="stable")
    drawn[order[: sum(counts) - int(drawn.sum())]] += 1
    for index, (count, wanted) in enumerate(zip(counts, drawn.tolist(), strict=True)):
        if not wanted:
            raise UserError(
                "SourceWithoutShare",
                f"dataset.train[{index}] would give none of its {count} examples to an epoch.",
                "Raise its weight or dataset.temperature, or leave it out.",
            )
    return [int(number) for number in drawn]


def draw(
    sources: Sequence[int], weights: Sequence[float], temperature: float, seed: int
) -> tuple[list[int], list[Task]]:
    """Which examples an epoch takes, as indices in ascending order, and the tasks.

    `sources` has the source of every example. One source, or equal weights at temperature 1, take
    every example once.
    """
    of = np.asarray(sources, dtype=np.int64)
    members = [np.flatnonzero(of == index) for index in range(len(weights))]
    counts = [len(each) for each in members]
    if empty := [index for index, count in enumerate(counts) if not count]:
        raise UserError(
            "TooFewRows",
            f"No row of dataset.train[{empty[0]}] is left to learn from: all are held out, or in "
            "dataset.validation too.",
            "Add rows, or leave the source out.",
        )
    drawn = shares(counts, weights, temperature)
    dice = np.random.default_rng(seed)
    taken = []
    for each, wanted in zip(members, drawn, strict=True):
        whole, rest = divmod(wanted, len(each))
        taken += [np.tile(each, whole), dice.permutation(each)[:rest]]
    tasks = [Task(count, wanted) for count, wanted in zip(counts, drawn, strict=True)]
    return np.sort(np.concatenate(taken)).tolist(), tasks
