"""Checks that a data set has each of its shards `NAME-00000-of-00003` once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import count

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.selection import Selection

_SHARD = re.compile(
    r"(?P<stem>(?:.*[-._ /])?)(?P<number>\d{1,9})"
    r"(?P<of>[-_]of[-_](?P<count>\d{1,9}))(?P<tail>\D.*)",
    re.IGNORECASE,
)


def check_shards(
    chosen: Iterable[str], paths: Iterable[str], selection: Selection, uri: str
) -> None:
    """Raise UserError where a shard is chosen twice, or where `paths` lack a shard of a set that
    `chosen` has a shard of.

    Numbers count from 0, or from 1 to the number of shards.
    """
    field = selection.spec_field
    shards = _find_shards(chosen)
    seen: dict[tuple[str, int], str] = {}
    for shard in shards:
        other = seen.setdefault((shard["stem"], int(shard["number"])), shard[0])
        if other != shard[0]:
            raise UserError(
                "NoMatchingFiles",
                f"{uri} has {other} and {shard[0]}, which are two versions of one shard.",
                f"Remove one version, or set {field}.files to a pattern for the other.",
                file=shard[0],
            )
    sets: dict[tuple[str, str], dict[int, re.Match[str]]] = {}
    for shard in _find_shards(paths):
        sets.setdefault(_set_of(shard), {})[int(shard["number"])] = shard
    for shard in shards:
        if missing := _find_missing(shard, sets[_set_of(shard)]):
            raise UserError(
                "NoMatchingFiles",
                f"{uri} has {shard[0]}, and lacks {missing}.",
                f"Upload what is missing, or set {field}.files to a pattern for the files to read.",
                file=shard[0],
            )


def _find_missing(shard: re.Match[str], found: Mapping[int, re.Match[str]]) -> str:
    """The first shard that is missing in a set, by number, and how many more; empty for none."""
    total = int(shard["count"])
    start = 1 if total in found and 0 not in found else 0
    number = next(each for each in count(start) if each not in found)
    if number >= start + total:
        return ""
    others = total - sum(start <= each < start + total for each in found) - 1
    more = f" and {others} more" if others else ""
    return _name(number, shard, found.values()) + more


def _find_shards(paths: Iterable[str]) -> list[re.Match[str]]:
    return [shard for path in paths if (shard := _SHARD.fullmatch(path))]


def _set_of(shard: re.Match[str]) -> tuple[str, str]:
    return shard["stem"], shard["of"]


def _name(number: int, shard: re.Match[str], found: Collection[re.Match[str]]) -> str:
    """The name of another shard of the set, without its end where that differs between shards, as
    a digest does."""
    is_known = "-" not in shard["tail"] and len({each["tail"] for each in found}) == 1
    tail = shard["tail"] if is_known else ""
    return f"{shard['stem']}{number:0{len(shard['number'])}}{shard['of']}{tail}"
