"""Which files of a data set belong to which split, by the conventions of the Hugging Face hub.

In this order: shards `data/SPLIT-00000-of-00001.parquet`; else folders whose names have the word of
a split (train, validation, test and their usual variants); else files whose names have it. Anything
but a letter separates words, and so does a capital letter; `set`, `data` or `split` may follow.
Upper case counts as lower case. Where no name has such a word, all files are of the split train,
unless some names seem to contain one. Unlike on the hub, `holdout` is a split, and a file whose
path has the words of two splits is in neither of them, so that training never includes test rows by
accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

TRAIN, VALIDATION, TEST, HOLDOUT = "train", "validation", "test", "holdout"
_KEYWORDS = {
    TRAIN: "train|training",
    VALIDATION: "validation|valid|dev|val",
    TEST: "test|testing|eval|evaluation",
    HOLDOUT: "(?:hold|held)[-._ ]?out",
}
_SPLITS = {
    split: re.compile(rf"(?<![^\W\d_])(?:{words})(?:sets?|data|split)?(?![^\W\d_])", re.IGNORECASE)
    for split, words in _KEYWORDS.items()
}
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a capital letter begins a word, as in dataTrain and in QATest."""
_WORD = re.compile(r"[^\W\d_]+")
_HINTS = {
    TRAIN: re.compile(r"train.*|.*train"),
    VALIDATION: re.compile(r"devs|.*dev|valid.*|.*validation.*|(?:dev|val)[^a-z].*"),
    TEST: re.compile(r"test.*|.*tests?|eval.*|.*evals?|.*(?:hold|held)outs?.*"),
}
_ORDINARY = re.compile(
    r"trainers?|trainees?|trainable|(?:con|re|dis)?strain|(?:pre|re)train"
    r"|testimon\w+|testaments?|testosterone|(?:con|pro|at|de)tests?"
    r"|(?:la|grea|fas|shor|smar|brigh|ligh|hot|fit|cu|quie|stric|sof|swee|whi|fain)test"
    r"|.*retrievals?|medieval|primeval|evaluators?"
)
"""Words that contain the word of a split by accident."""
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
    """Where nothing is named after a split: files that seem to contain the word of one."""


def detect_splits(paths: Iterable[str]) -> Splits:
    """The splits of files with these paths, relative to the data set's folder."""
    paths = sorted(paths)
    shards = {path: match["split"] for path in paths if (match := _SHARD.fullmatch(path))}
    if shards:
        return _group({path: (split,) for path, split in shards.items()})
    by_folder = {path: _folder_splits(path) for path in paths}
    if any(by_folder.values()):
        # A file train/test.jsonl is of two splits.
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
    return Splits({TRAIN: paths} if paths else {}, are_named=False, unclear=_find_unclear(paths))


def splits_of_name(name: str) -> tuple[str, ...]:
    """The splits whose words a name has."""
    forms = (name, _CAPITAL.sub(" ", name))
    return tuple(
        split for split, words in _SPLITS.items() if any(words.search(form) for form in forms)
    )


def _folder_splits(path: str) -> tuple[str, ...]:
    found = (split for name in path.split("/")[:-1] for split in splits_of_name(name))
    return tuple(dict.fromkeys(found))


def _file_splits(path: str) -> tuple[str, ...]:
    return splits_of_name(path.rsplit("/", 1)[-1])


def _find_unclear(paths: Sequence[str]) -> tuple[str, ...]:
    hints = {path: find_hints(path) for path in paths}
    if len(set(hints.values())) < 2:
        return ()
    return tuple(path for path, found in hints.items() if found)


def find_hints(path: str) -> frozenset[str]:
    """The splits of which a path seems to contain a word."""
    words = [word for word in _WORD.findall(path.lower()) if not _ORDINARY.fullmatch(word)]
    return frozenset(
        split for split, hint in _HINTS.items() if any(hint.fullmatch(word) for word in words)
    )


def _group(by_path: dict[str, tuple[str, ...]]) -> Splits:
    files: dict[str, list[str]] = {}
    for path, found in by_path.items():
        for split in found if len(found) == 1 else ():
            files.setdefault(split, []).append(path)
    ambiguous = {path: found for path, found in by_path.items() if len(found) > 1}
    return Splits(files, are_named=True, ambiguous=ambiguous)
