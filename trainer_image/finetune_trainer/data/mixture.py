"""How often an epoch takes each source of a mixture: temperature sampling.

Source i with n samples gets a fraction of the epoch in proportion to weight * n^(1/T) (Raffel et
al. 2020, arXiv 1910.10683, section 3.5.2); the epoch has as many samples as all sources together.
Fractions become whole numbers by largest remainder. A source that gets more than it has is repeated
as often as it fits whole, and the remainder is drawn without replacement; so is the part of a
source that gets less than it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_trainer.runtime.errors import UserError


@dataclass(frozen=True)
class MixtureSource:
    """One source of the mixture."""

    samples: int
    """On the training side."""
    samples_per_epoch: int


def allocate_epoch(
    counts: Sequence[int], weights: Sequence[float], temperature: float
) -> list[int]:
    """Samples of each source in an epoch, [sources]; they sum to as many as there are.

    Raises UserError where a source would give none.
    """
    raw = np.asarray(weights) * np.asarray(counts, dtype=np.float64) ** (1 / temperature)
    exact = raw / raw.sum() * sum(counts)
    allocated = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(allocated - exact, kind="stable")
    allocated[by_remainder[: sum(counts) - int(allocated.sum())]] += 1
    for index, (count, part) in enumerate(zip(counts, allocated.tolist(), strict=True)):
        if not part:
            raise UserError(
                "SourceWithoutShare",
                f"dataset.train[{index}] would give none of its {count} samples to an epoch.",
                "Raise its weight or dataset.temperature, or leave it out.",
            )
    return [int(number) for number in allocated]


def draw_epoch(
    sources: Sequence[int], weights: Sequence[float], temperature: float, seed: int
) -> tuple[list[int], list[MixtureSource]]:
    """Which samples an epoch takes, as indices in ascending order, and the sources.

    `sources` has the index of each sample's source. One source, or equal weights at temperature 1,
    take every sample once.
    """
    source_of_sample = np.asarray(sources, dtype=np.int64)
    members = [np.flatnonzero(source_of_sample == index) for index in range(len(weights))]
    counts = [len(each) for each in members]
    if empty := [index for index, count in enumerate(counts) if not count]:
        raise UserError(
            "TooFewRows",
            f"No row of dataset.train[{empty[0]}] is left to learn from: all are held out, or in "
            "dataset.validation too.",
            "Add rows, or leave the source out.",
        )
    allocated = allocate_epoch(counts, weights, temperature)
    generator = np.random.default_rng(seed)
    taken = []
    for each, part in zip(members, allocated, strict=True):
        repeats, remainder = divmod(part, len(each))
        taken += [np.tile(each, repeats), generator.permutation(each)[:remainder]]
    mixture = [MixtureSource(*each) for each in zip(counts, allocated, strict=True)]
    return np.sort(np.concatenate(taken)).tolist(), mixture
