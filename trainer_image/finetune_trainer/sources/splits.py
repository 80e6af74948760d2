"""Which files of a data set belong to which split, by the conventions of the Hugging Face hub.

In this order: shards `data/SPLIT-00000-of-00001.parquet`; else folders whose names have the word of
a split (train, validation, test and their usual variants); else files whose names have it. Anything
but a letter separates words. Upper case counts as lower case. Where no name has such a word, all
files are of the split train, unless some names contain one as a part of another word. Unlike on the
hub, `holdout` is a split, and a file whose path has the words of two splits is in neither of them,
so that training never includes test rows by accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

TRAIN, VALIDATION = "train", "validation"
_WORDS = {
    TRAIN: "training|train",
    VALIDATION: "validation|valid|dev|val",
    "test": "testing|test|evaluation|eval",
    "holdout": "(?:hold|held)[-._ ]?out",
}
_SPLITS = {
    split: re.compile(rf"(?<![^\W\d_])(?:{words})(?![^\W\d_])", re.IGNORECASE)
    for split, words in _WORDS.items()
}
_INNER_WORD = re.compile(
    r"train|test|eval|valid|(?:hold|held)[-._ ]?out|(?:dev|val)(?:set|data|split|s?(?![a-z]))"
)
"""The word of a split inside another one; dev and val also begin many words, such as device."""
_SHARD = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")


@dataclass(frozen=True)
class Splits:
    """The files of each split, sorted by path."""

    files: dict[str, list[str]]
    are_named: bool
    """Whether folders or files are named after splits; otherwise all files are of train."""
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The splits of every file whose path has the words of several."""
    unclear: tuple[str, ...] = ()
    """Where nothing is named after a split: files with the word of one inside another word."""


def detect_splits(paths: Iterable[str]) -> Splits:
    """The splits of files with these paths, relative to the data set's folder."""
    paths = sorted(paths)
    if shards := [match for path in paths if (match := _SHARD.fullmatch(path))]:
        return _group({match[0]: (match["split"],) for match in shards})
    found = {path: splits_of_name(path) for path in paths}
    in_folders = [path for path in paths if splits_of_name(path.rpartition("/")[0])]
    if named := in_folders or [path for path in paths if found[path]]:
        return _group({path: found[path] for path in named})
    return Splits({TRAIN: paths} if paths else {}, are_named=False, unclear=_find_unclear(paths))


def splits_of_name(name: str) -> tuple[str, ...]:
    """The splits whose words a name or a path has."""
    return tuple(split for split, words in _SPLITS.items() if words.search(name))


def inner_words(name: str) -> frozenset[str]:
    """The words of splits that a name contains, also inside other words."""
    return frozenset(_INNER_WORD.findall(name.lower()))


def _find_unclear(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths that contain the word of a split, unless all contain the same words."""
    contained = {path: inner_words(path) for path in paths}
    if len(set(contained.values())) < 2:
        return ()
    return tuple(path for path, words in contained.items() if words)


def _group(by_path: dict[str, tuple[str, ...]]) -> Splits:
    files: dict[str, list[str]] = {}
    for path, found in by_path.items():
        for split in found if len(found) == 1 else ():
            files.setdefault(split, []).append(path)
    ambiguous = {path: found for path, found in by_path.items() if len(found) > 1}
    return Splits(files, are_named=True, ambiguous=ambiguous)
