"""What a data set declares about its files, in README.md, dataset_dict.json or state.json.

README.md is the data set's card on the Hugging Face hub; its front matter may name configurations,
each with patterns for the files of its splits. dataset_dict.json is written by `save_to_disk` of
datasets and names the splits, each of which is a folder; state.json, in that folder, names its
files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.sources.splits import TRAIN

CARD, DATASET_DICT, STATE = "README.md", "dataset_dict.json", "state.json"
DEFAULT_CONFIG = "default"


class CardError(ValueError):
    """A declaration that cannot be used; the message says why."""


@dataclass(frozen=True)
class CardConfig:
    """One configuration of a data set."""

    name: str
    is_default: bool = False
    folder: str = ""
    """data_dir, to which the patterns are relative; empty for the data set's folder."""
    patterns: Mapping[str, tuple[str, ...]] | None = None
    """Patterns for the files of each split; None where the names of files decide."""


def read_card(path: Path) -> list[CardConfig]:
    """The configurations in the front matter of a README.md; CardError where it is malformed."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        detail = str(error).split("\n")[0][:200]
        raise CardError(f"its front matter is not valid YAML: {detail}") from None
    except ValueError:  # front matter that is not a mapping declares nothing
        return []
    return parse_configs(metadata or {})


def parse_configs(metadata: Mapping[str, Any]) -> list[CardConfig]:
    """The configurations that a card's metadata declares; CardError where they are malformed."""
    configs = metadata.get("configs") or []
    if not isinstance(configs, list) or not all(isinstance(each, dict) for each in configs):
        raise CardError("configs is not a list of configurations")
    parsed = [_parse_config(each) for each in configs]
    if len({each.name for each in parsed}) < len(parsed):
        raise CardError("two configurations have the same config_name")
    if sum(each.is_default for each in parsed) > 1:
        raise CardError("two configurations are the default")
    return parsed


def _parse_config(config: Mapping[str, Any]) -> CardConfig:
    name = str(config.get("config_name", DEFAULT_CONFIG))
    folder, files = config.get("data_dir"), config.get("data_files")
    if folder is not None and not isinstance(folder, str):
        raise CardError(f"data_dir of the configuration {name} is not a path")
    return CardConfig(
        name,
        is_default=config.get("default") is True,
        folder=(folder or "").strip("/").removeprefix("./"),
        patterns=None if files is None else _parse_patterns(files, name),
    )


def _parse_patterns(files: Any, config: str) -> dict[str, tuple[str, ...]]:
    """Patterns by split from a pattern, a list of patterns, {split: patterns}, or a list of
    {split, path}."""
    if isinstance(files, dict):
        return {str(split): _strings(patterns, config) for split, patterns in files.items()}
    entries = files if isinstance(files, list) else [files]
    if entries and all(isinstance(each, dict) for each in entries):
        found: dict[str, tuple[str, ...]] = {}
        for each in entries:
            split = str(each.get("split", TRAIN))
            found[split] = (*found.get(split, ()), *_strings(each.get("path"), config))
        return found
    return {TRAIN: _strings(entries, config)}


def _strings(value: Any, config: str) -> tuple[str, ...]:
    patterns = value if isinstance(value, list) else [value]
    if not patterns or not all(isinstance(each, str) and each for each in patterns):
        raise CardError(f"data_files of the configuration {config} has a value that is not a path")
    if any("**" in part and part != "**" for each in patterns for part in each.split("/")):
        raise CardError(f"data_files of the configuration {config} has ** as a part of a name")
    return tuple(each.removeprefix("./") for each in patterns)


def read_dataset_dict(path: Path) -> list[str]:
    """The splits that a dataset_dict.json names; CardError where it is malformed."""
    try:
        splits = json.loads(path.read_bytes())["splits"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CardError("it is not the dataset_dict.json that save_to_disk writes") from None
    if not isinstance(splits, list) or not all(isinstance(each, str) for each in splits):
        raise CardError("splits is not a list of names")
    return splits


def read_saved_files(path: Path) -> list[str]:
    """The files that a state.json names, none where it names none; CardError where it is
    malformed."""
    try:
        return [str(file["filename"]) for file in json.loads(path.read_bytes())["_data_files"]]
    except KeyError:
        return []
    except (ValueError, TypeError, RecursionError):
        raise CardError("it is not the state.json that save_to_disk writes") from None
