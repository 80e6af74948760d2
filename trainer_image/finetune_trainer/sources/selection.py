"""Which files of a source a job reads: by its pattern, split and configuration, or by default.

Pure: a listing and the data set's own declarations go in, paths come out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fsspec.utils import glob_translate

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_card import CARD, DEFAULT_CONFIG, CardConfig
from finetune_trainer.sources.splits import TRAIN, Splits, detect_splits

_LISTED = 5


@dataclass(frozen=True)
class Selection:
    """How a job selects the files of one source."""

    spec_field: str = "dataset.train[0]"
    files: str | None = None
    split: str | None = None
    config: str | None = None
    default_split: str = TRAIN
    """The split that is read where the job names neither files nor split."""

    @property
    def wanted_split(self) -> str:
        """The split that is read where the data set has splits."""
        return self.split or self.default_split

    @property
    def is_default(self) -> bool:
        """Whether the job leaves the choice to the data set."""
        return self.files is None and self.split is None and self.config is None


@dataclass(frozen=True)
class Declared:
    """What the data set declares about its files."""

    configs: Sequence[CardConfig] = ()
    splits: Sequence[str] = ()
    """Folders that are splits, from a dataset_dict.json."""


def select_files(
    paths: Collection[str], selection: Selection, declared: Declared, uri: str
) -> list[str]:
    """The paths that the job reads, sorted; `paths` are relative to the folder of the address.

    Raises UserError NoMatchingFiles or ConfigNotChosen with the files, splits or configurations.
    """
    if selection.files is not None:
        try:
            matched = match_pattern(paths, selection.files)
        except ValueError:
            raise _no_match(
                f"{selection.files!r} has ** as a part of a name", paths, selection
            ) from None
        if not matched:
            raise _no_match(f"No data file of {uri} matches {selection.files!r}", paths, selection)
        if selection.split is None:
            return matched
        return _choose_split(detect_splits(matched), selection, uri)
    config = _choose_config(declared.configs, selection, uri)
    if config is None and declared.splits:
        folders = {name: match_pattern(paths, f"{name}/**") for name in declared.splits}
        return _choose_split(Splits(folders, are_named=True), selection, uri)
    if config is None:
        return _choose_split(detect_splits(visible_paths(paths)), selection, uri)
    return _select_config(paths, config, selection, uri)


def _select_config(
    paths: Collection[str], config: CardConfig, selection: Selection, uri: str
) -> list[str]:
    prefix = f"{config.folder}/" if config.folder else ""
    below = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    if config.patterns is None:
        splits = detect_splits(visible_paths(below))
    else:
        by_split = {
            split: sorted({path for each in patterns for path in match_pattern(below, each)})
            for split, patterns in config.patterns.items()
        }
        for each in config.patterns.get(selection.wanted_split, ()):
            if not match_pattern(below, each):
                raise _declared_missing(each, config, selection, uri)
        splits = Splits(by_split, are_named=True)
    return [f"{prefix}{path}" for path in _choose_split(splits, selection, uri)]


def _choose_config(
    configs: Sequence[CardConfig], selection: Selection, uri: str
) -> CardConfig | None:
    names = [each.name for each in configs]
    if selection.config is not None:
        for each in configs:
            if each.name == selection.config:
                return each
        listed = f"it declares {', '.join(names)}" if names else "its README.md declares none"
        raise UserError(
            "ConfigNotChosen",
            f"{uri} has no configuration {selection.config}: {listed}.",
            f"Correct {selection.spec_field}.config, or leave it out."
            if names
            else f"Leave {selection.spec_field}.config out, or set files.",
        )
    default = [each for each in configs if each.is_default]
    default = default or [each for each in configs if each.name == DEFAULT_CONFIG]
    if len(configs) <= 1 or default:
        return next(iter(default or configs), None)
    raise UserError(
        "ConfigNotChosen",
        f"{uri} has several configurations and no default: {', '.join(names)}.",
        f"Name one in {selection.spec_field}.config.",
    )


def _choose_split(splits: Splits, selection: Selection, uri: str) -> list[str]:
    wanted = selection.wanted_split if splits.are_named else selection.split or TRAIN
    field = selection.spec_field
    if splits.unclear:
        raise UserError(
            "NoMatchingFiles",
            f"It is not clear to which splits the files of {uri} belong: some names contain the "
            f"word of a split: {_list_some(splits.unclear)}.",
            f"Set {field}.files to a pattern for the files to read, such as '**/*.jsonl', or name "
            f"the files as in rows-test.jsonl, so that {field}.split can choose.",
            file=splits.unclear[0],
        )
    for path, found in splits.ambiguous.items():
        if wanted in found:
            raise UserError(
                "NoMatchingFiles",
                f"The path {path} of {uri} has the words of the splits {' and '.join(found)}.",
                f"Rename it, or set {field}.files to a pattern for the files to read.",
                file=path,
            )
    if chosen := sorted(splits.files.get(wanted, ())):
        return chosen
    named = sorted(name for name, files in splits.files.items() if files)
    example = f", with files such as {splits.files[named[0]][0]}" if named else ""
    raise UserError(
        "NoMatchingFiles",
        f"{uri} has no files of the split {wanted}; its splits are: "
        f"{', '.join(named) or 'none'}{example}.",
        f"Name a split in {field}.split, or set {field}.files to a pattern such as '*.jsonl'.",
    )


def _declared_missing(
    pattern: str, config: CardConfig, selection: Selection, uri: str
) -> UserError:
    return UserError(
        "NoMatchingFiles",
        f"{CARD} of {uri} declares the files {pattern!r} of the split {selection.wanted_split} in "
        f"the configuration {config.name}, and no data file matches.",
        f"Upload them, correct {CARD}, or set {selection.spec_field}.files to a pattern.",
        file=CARD,
    )


def _no_match(message: str, paths: Collection[str], selection: Selection) -> UserError:
    return UserError(
        "NoMatchingFiles",
        f"{message}; the files are: {_list_some(sorted(paths))}.",
        f"Correct {selection.spec_field}.files: * matches within one folder, **/ in all folders.",
    )


def _list_some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    return ", ".join(paths[:_LISTED]) + more


def match_pattern(paths: Iterable[str], pattern: str) -> list[str]:
    """The paths that match a glob, sorted; hidden ones only where the glob names them.

    Raises ValueError where ** is only a part of a name.
    """
    pattern = pattern.removeprefix("./")
    expression = re.compile(glob_translate(pattern.strip("/")))
    hidden = _hidden_parts(pattern)
    return sorted(
        path for path in paths if expression.match(path) and _hidden_parts(path) == hidden
    )


def visible_paths(paths: Iterable[str]) -> list[str]:
    """The paths in which no part begins with . or _."""
    return [path for path in paths if not _hidden_parts(path)]


def _hidden_parts(path: str) -> int:
    return sum(part.startswith((".", "_")) for part in path.split("/"))
