"""Which files of a data set belong to which split, by the conventions of the Hugging Face hub.

In this order: shards `data/SPLIT-00000-of-00001.parquet`; else folders whose names have the word of
a split (train, validation, test and their usual variants); else files whose names have it. Words
are set off by - . _ blanks or digits, and upper case counts as lower case. Where no name has such a
word, all files are of the split train. Unlike the hub, a file that its name puts into two splits is
in none of them, so that no row of a test is learnt by accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_KEYWORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "dev", "val"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
_SEPARATOR = r"[-._ 0-9]"
_WORDS = {
    split: re.compile(rf"(?:^|{_SEPARATOR})(?:{'|'.join(words)})(?:{_SEPARATOR}|$)", re.IGNORECASE)
    for split, words in _KEYWORDS.items()
}
_SHARD = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")


@dataclass(frozen=True)
class Splits:
    """The files of each split, sorted by path."""

    files: dict[str, list[str]]
    are_named: bool
    """Whether names of files or folders tell the splits; otherwise all files are of train."""
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The splits of every file whose name has the words of several."""


def detect_splits(paths: Iterable[str]) -> Splits:
    """The splits of files with these paths, relative to the data set's folder."""
    paths = sorted(paths)
    shards = {path: match["split"] for path in paths if (match := _SHARD.fullmatch(path))}
    if shards:
        return _group({path: (split,) for path, split in shards.items()})
    by_folder = {path: _folder_splits(path) for path in paths}
    if any(by_folder.values()):
        # A file train/test.jsonl is of two splits, too.
        named = {path: found for path, found in by_folder.items() if found}
        return _group(
            {
                path: tuple(dict.fromkeys((*found, *_file_splits(path))))
                for path, found in named.items()
            }
        )
    by_name = {path: found for path in paths if (found := _file_splits(path))}
    if by_name:
        return _group(by_name)
    return Splits({TRAIN: paths} if paths else {}, are_named=False)


def _folder_splits(path: str) -> tuple[str, ...]:
    return _find_words(path.split("/")[:-1])


def _file_splits(path: str) -> tuple[str, ...]:
    return _find_words([path.rsplit("/", 1)[-1]])


def _find_words(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        split for split, words in _WORDS.items() if any(words.search(name) for name in names)
    )


def _group(by_path: dict[str, tuple[str, ...]]) -> Splits:
    files: dict[str, list[str]] = {}
    for path, found in by_path.items():
        for split in found if len(found) == 1 else ():
            files.setdefault(split, []).append(path)
    ambiguous = {path: found for path, found in by_path.items() if len(found) > 1}
    return Splits(files, are_named=True, ambiguous=ambiguous)
