"""Which rows are learnt from and which are kept to judge by.

A row's side is decided by a hash of its content and the seed. So equal rows always fall on the same
side, the order of the file does not matter, and a data set that grows keeps its old split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.data.messages import Sample
from finetune_trainer.runtime.errors import UserError

DEFAULT_HOLDOUT = "10%"


@dataclass(frozen=True)
class Split:
    """Both sides; the held-out one in an order that is random but always the same."""

    train: list[Sample]
    held_out: list[Sample]
    duplicates: int
    """Rows, over both sides, that equal an earlier one."""
    removed: int = 0
    """Training rows left out because the validation data has them too."""


def share(percent: str | None) -> float:
    """`10%` as 0.1; UserError where nothing or everything would be held out."""
    value = float((percent or DEFAULT_HOLDOUT).removesuffix("%")) / 100
    if not 0 < value < 1:
        raise UserError(
            "BadHoldout",
            f"dataset.holdout is {percent}: one side would be empty.",
            "Use more than 0% and less than 100%, or give dataset.validation.",
        )
    return value


def holdout(rows: Sequence[Sample], percent: str | None, seed: int) -> Split:
    """Hold out about `percent` of the distinct rows, at least one, and leave at least one."""
    limit = share(percent)
    place = {key: _place(key, seed) for key in {row.key for row in rows}}
    if len(place) < 2:
        raise too_few(len(rows), len(place))
    kept_back = {key for key, at in place.items() if at < limit}
    if not kept_back:
        kept_back = {min(place, key=lambda key: place[key])}
    elif len(kept_back) == len(place):
        kept_back.remove(max(place, key=lambda key: place[key]))
    return Split(
        train=[row for row in rows if row.key not in kept_back],
        held_out=_ordered([row for row in rows if row.key in kept_back], seed),
        duplicates=len(rows) - len(place),
    )


def with_validation(train: Sequence[Sample], validation: Sequence[Sample], seed: int) -> Split:
    """Judge by `validation`; training rows that it has too are left out of training."""
    known = {row.key for row in validation}
    kept = [row for row in train if row.key not in known]
    if not kept or not validation:
        raise UserError(
            "TooFewRows",
            "Every training row stands in dataset.validation too, so none is left to learn from.",
            "Give validation data that is not part of the training data.",
        )
    distinct = len({row.key for row in kept}) + len(known)
    return Split(
        train=kept,
        held_out=_ordered(list(validation), seed),
        duplicates=len(kept) + len(validation) - distinct,
        removed=len(train) - len(kept),
    )


def too_few(rows: int, distinct: int) -> UserError:
    """One row cannot be on both sides."""
    return UserError(
        "TooFewRows",
        f"The data has {rows} row{'s' if rows != 1 else ''}, {distinct} of them distinct; "
        "two are needed, to learn from one and be judged on the other.",
        "Add rows, or give dataset.validation.",
    )


def _ordered(rows: list[Sample], seed: int) -> list[Sample]:
    # Evaluation may take only the first rows: they must be no worse a sample than any others.
    return sorted(rows, key=lambda row: _place(row.key, seed))


def _place(key: bytes, seed: int) -> float:
    """A number in [0, 1) that looks random and never changes."""
    return int.from_bytes(hashlib.sha256(key + str(seed).encode()).digest()[:6]) / 2**48
