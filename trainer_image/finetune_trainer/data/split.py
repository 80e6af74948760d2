"""Which samples are learnt from and which are held out for evaluation.

A hash of a sample's content and the seed decides its side. So equal samples are always on the same
side, the order of the file does not matter, and a data set that grows keeps its old split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from finetune_trainer.data.samples import Sample
from finetune_trainer.runtime.errors import UserError

DEFAULT_HOLDOUT = "10%"
S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Split:
    """Both sides; the held-out one in an order that is random but always the same."""

    train: list[Sample]
    held_out: list[Sample]
    duplicate_count: int
    """Samples, over both sides, that equal an earlier one."""
    overlap_count: int = 0
    """Training samples left out because the validation data has them too."""


def parse_holdout(percent: str | None) -> float:
    """`10%` as 0.1; UserError where nothing or everything would be held out."""
    value = float((percent or DEFAULT_HOLDOUT).removesuffix("%")) / 100
    if not 0 < value < 1:
        raise UserError(
            "BadHoldout",
            f"dataset.holdout is {percent}: one side would be empty.",
            "Use more than 0% and less than 100%, or give dataset.validation.",
        )
    return value


def hold_out_fraction(samples: Sequence[Sample], percent: str | None, seed: int) -> Split:
    """Hold out about `percent` of the distinct samples, at least one, and keep at least one."""
    limit = parse_holdout(percent)
    position = {key: _hash_to_fraction(key, seed) for key in {each.key for each in samples}}
    if len(position) < 2:
        raise too_few_samples(len(samples), len(position))
    held_out = {key for key, at in position.items() if at < limit}
    if not held_out:
        held_out = {min(position, key=lambda key: position[key])}
    elif len(held_out) == len(position):
        held_out.remove(max(position, key=lambda key: position[key]))
    return Split(
        train=[each for each in samples if each.key not in held_out],
        held_out=shuffle([each for each in samples if each.key in held_out], seed),
        duplicate_count=len(samples) - len(position),
    )


def hold_out_validation(train: Sequence[Sample], validation: Sequence[Sample], seed: int) -> Split:
    """Hold out `validation`; training samples that it has too are left out of training."""
    held_out = {each.key for each in validation}
    kept = [each for each in train if each.key not in held_out]
    if not kept or not validation:
        raise UserError(
            "TooFewRows",
            "Every training row is in dataset.validation too, so none is left to learn from.",
            "Give validation data that is not part of the training data.",
        )
    distinct = len({each.key for each in kept}) + len(held_out)
    return Split(
        train=kept,
        held_out=shuffle(list(validation), seed),
        duplicate_count=len(kept) + len(validation) - distinct,
        overlap_count=len(train) - len(kept),
    )


def too_few_samples(count: int, distinct: int) -> UserError:
    """One distinct row cannot be on both sides."""
    return UserError(
        "TooFewRows",
        f"The data has {count} row{'s' if count != 1 else ''}, {distinct} of them distinct; "
        "two are needed, one to learn from and one to evaluate on.",
        "Add rows, or give dataset.validation.",
    )


def shuffle(samples: Sequence[S], seed: int) -> list[S]:
    """The samples in an order that is random but always the same."""
    # Evaluation may take only the first samples, so they must represent all of them.
    return sorted(samples, key=lambda each: _hash_to_fraction(each.key, seed))


def _hash_to_fraction(key: bytes, seed: int) -> float:
    """A number in [0, 1) that looks random and never changes."""
    return int.from_bytes(hashlib.sha256(key + str(seed).encode()).digest()[:6]) / 2**48
