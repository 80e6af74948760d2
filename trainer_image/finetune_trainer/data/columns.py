"""The column mapping of a source: its format, and which column holds what.

A format is a set of columns. The objective decides which formats are possible, and the first of
them whose columns are present is taken, unless the job names one. The job's `columns` and the first
record of a source settle the required columns for every record of that source; optional ones are
looked for in each record. A column that means something here, and that the format cannot use, is
refused; `ColumnMapping.find_unused` returns the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_api import combinations
from finetune_api.dataset import Format
from finetune_api.finetunejob import Columns, Objective

from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.tool_calls import is_empty
from finetune_trainer.data.turns import MEDIA, REASONING_KEYS, holds_media

MESSAGES = ("messages", "conversations")
PROMPT = ("prompt", "instruction", "question")
COMPLETION = ("completion", "output", "response", "answer")
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "messages": MESSAGES,
    "prompt": PROMPT,
    "completion": COMPLETION,
    "input": ("input", "context"),
    "history": ("history",),
    "system": ("system", "system_prompt", "system_message"),
    "reasoning": REASONING_KEYS,
    "tools": ("tools", "functions"),
    "documents": ("documents",),
    "text": ("text", "content"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
    "reference": ("reference", "answer", "solution", "completion"),
}
"""Names of columns where the job gives none, in the order in which they are tried."""
ALPACA_PROMPT = "instruction"
"""The prompt column that an input continues."""

FORMATS: Mapping[Objective, tuple[Format, ...]] = {
    objective: formats
    for objectives, formats in combinations.FORMATS.items()
    for objective in objectives
}
REQUIRED: Mapping[Format, tuple[tuple[str, ...], ...]] = {
    "chat": (("messages",),),
    "instruction": (("prompt", "completion"),),
    "completion": (("text",),),
    "preference": (("chosen", "rejected"),),
    "unpaired": (("prompt", "completion", "label"), ("messages", "label")),
    "prompt": (("prompt",), ("messages",)),
}
"""Columns without which a row is not of the format; any one of the sets is enough."""
CONTEXT = ("system", "tools", "documents")
OPTIONAL: Mapping[Format, tuple[str, ...]] = {
    "chat": CONTEXT,
    "instruction": (*CONTEXT, "input", "history", "reasoning"),
    "completion": (),
    "preference": ("prompt", "messages", "input", *CONTEXT),
    "unpaired": ("input", *CONTEXT),
    "prompt": ("input", "reference", *CONTEXT),
}
_MEANINGFUL: Mapping[Format, tuple[str, ...]] = {
    "chat": ("input", "history", "reasoning"),
    "instruction": ("input",),
    "completion": ("system", "tools"),
    "preference": ("input", "history", "reasoning"),
    "unpaired": ("input", "history", "reasoning"),
    "prompt": ("input", "history"),
}
"""Roles whose usual names are refused where a row of the format has them and cannot use them."""
_WEIGHTS = (
    *("weight", "weights", "sample_weight", "sample_weights", "loss_weight"),
    *("train", "loss", "loss_mask", "completion_mask", "assistant_masks"),
)
_FREE_CHOICE = "reference"
"""The role whose other names may hold something else, such as a solution next to the answer."""
_HOLDS_MEDIA = "holds images, video or audio, which cannot be used"
_REFUSED = {
    **dict.fromkeys(MEDIA, _HOLDS_MEDIA),
    **dict.fromkeys(
        ("chat_template", "chat_template_kwargs", "enable_thinking", "reasoning_effort"),
        "would change the chat template for one row, which cannot be used; model.tokenizer has the "
        "settings of all rows",
    ),
}


@dataclass(frozen=True)
class ColumnMapping:
    """The format, and the names under which a record has each of its columns."""

    format: Format
    names: Mapping[str, tuple[str, ...]]
    """By role; one name for a required column, several for an optional one."""
    settled: frozenset[str] = frozenset()
    """Required roles whose column the first record settled, and not the job: a column of another
    usual name is refused, unless it holds the same."""

    @cached_property
    def used(self) -> frozenset[str]:
        """Every name that is looked for."""
        return frozenset(name for names in self.names.values() for name in names)

    def find(self, values: Mapping[str, Any], role: str) -> tuple[str, Any]:
        """Name and value of a column, the first one that is not empty; an empty name and None where
        the format has no such column. RowError where two columns of the role differ."""
        names = self.names.get(role, ())
        if values.keys().isdisjoint(names):  # as for most roles of most rows
            return (names[0] if names else ""), None
        present = [name for name in names if values.get(name) is not None]
        if not present:
            return names[0], None
        filled = [name for name in present if not is_empty(values[name])]
        name = filled[0] if filled else present[0]
        if role != _FREE_CHOICE and any(values[other] != values[name] for other in filled[1:]):
            raise two_columns(name, filled[1], role)
        return name, values[name]

    def require(self, values: Mapping[str, Any], role: str) -> tuple[str, Any]:
        """Name and value of a column; RowError where it is missing or null."""
        name = next((name for name in self.names[role] if values.get(name) is not None), None)
        if name is not None:
            return name, values[name]
        name = self.names[role][0]
        listed = ", ".join(sorted(str(key) for key in values)) or "none"
        raise RowError(
            "MissingColumn",
            f"the column {name!r} is {'empty' if name in values else 'missing'}; "
            f"the columns are: {listed}",
            "Give every row the same columns, or name others in dataset.columns.",
        )

    def has(self, role: str) -> bool:
        """Whether records of the format can have this column."""
        return role in self.names

    def find_unused(self, values: Mapping[str, Any]) -> set[str]:
        """The columns of a record that are not empty and that the format does not use; RowError
        where one of them means something."""
        unused = {str(name) for name in values.keys() - self.used if not is_empty(values[name])}
        for name in unused:
            self._check_unused(name, values)
        if self.has(_FREE_CHOICE):
            others = {*self.names[_FREE_CHOICE]} - {self.find(values, _FREE_CHOICE)[0]}
            unused |= {name for name in others if not is_empty(values.get(name))}
        return unused

    def _check_unused(self, name: str, values: Mapping[str, Any]) -> None:
        for role in self.settled:
            if name in USUAL_NAMES[role] and values[name] != values.get(self.names[role][0]):
                raise two_columns(self.names[role][0], name, role)
        why, remedy = _REFUSED.get(name), "Name it in dataset.ignoreColumns to train without it."
        if holds_media(values[name]):
            why = _HOLDS_MEDIA
        if role := next((r for r in _MEANINGFUL[self.format] if name in USUAL_NAMES[r]), ""):
            why = f"is not used in rows of the format {self.format}"
            if role in OPTIONAL[self.format]:
                remedy = f"Name it in dataset.columns.{role}, or in dataset.ignoreColumns."
        elif name in _WEIGHTS and _to_word(values[name]) not in ("1", "1.0", "true"):
            why = "weights rows, which cannot be used"
        elif name in USUAL_NAMES["label"] and _to_word(values[name]) in ("true", "false"):
            why = "marks answers as desirable or not, which only the objective KTO learns from"
            remedy = f"Use the objective KTO, or remove undesirable rows. {remedy}"
        if why:
            raise RowError("UnusableColumn", f"the column {name!r} {why}", remedy)


def _to_word(value: Any) -> str:
    return str(value).strip().lower()


def find_column_mapping(
    format_: str, columns: Columns, present: Sequence[str], objective: Objective = "SFT"
) -> ColumnMapping:
    """The mapping of a source whose first record has the columns `present`.

    `format_` and `columns` are the job's. Raises RowError where no format fits.
    """
    possible: tuple[Format, ...] = FORMATS[objective]
    possible = possible if format_ == "auto" else tuple(f for f in REQUIRED if f == format_)
    named = named_roles(columns)
    _check_named_once(columns, named)
    # A column that the job names must be used, so it decides which format is meant.
    meant = tuple(each for each in possible if named and named <= _column_roles(each))
    for candidate in meant or possible:
        if mapping := _match_format(candidate, columns, present):
            _check_roles(named, candidate)
            return mapping
    raise _missing_column(meant or possible, columns, present)


def named_roles(columns: Columns) -> set[str]:
    """The roles for which the job names a column."""
    return {role for role in USUAL_NAMES if getattr(columns, role, None)}


def _check_named_once(columns: Columns, named: Collection[str]) -> None:
    """RowError where the job names one column for two things."""
    seen: dict[str, str] = {}
    for role in sorted(named):
        other = seen.setdefault(getattr(columns, role), role)
        if other != role:
            raise RowError(
                "UnusableColumn",
                f"dataset.columns names {getattr(columns, role)!r} as {other} and as {role}",
                "Name a column of its own for each.",
            )


def check_named_columns(columns: Columns, mapping: ColumnMapping, present: Collection[str]) -> None:
    """RowError where no record of a source, with the columns `present`, has a named column."""
    for role in sorted(named_roles(columns)):
        if role in mapping.names and getattr(columns, role) not in present:
            raise _missing_column((mapping.format,), columns, sorted(present))


def _check_roles(named: set[str], format_: Format) -> None:
    if unused := sorted(named - _column_roles(format_)):
        raise RowError(
            "UnusedColumn",
            f"dataset.columns.{unused[0]} is given, but rows of the format {format_} have no such "
            "column",
            "Leave it out, or set dataset.format.",
        )


def _column_roles(format_: Format) -> set[str]:
    return {name for names in REQUIRED[format_] for name in names} | set(OPTIONAL[format_])


def _match_format(
    format_: Format, columns: Columns, present: Sequence[str]
) -> ColumnMapping | None:
    for required in REQUIRED[format_]:
        found = {
            role: _pick(getattr(columns, role), USUAL_NAMES[role], present) for role in required
        }
        if not all(found.values()):
            continue
        given = {role for role in found if getattr(columns, role, None)}
        names: dict[str, tuple[str, ...]] = {role: (name,) for role, name in found.items() if name}
        for role in OPTIONAL[format_]:
            override = getattr(columns, role, None)
            if role not in names and (override or _is_looked_for(role, columns, present)):
                names[role] = (override,) if override else USUAL_NAMES[role]
        named = {getattr(columns, role, None) for role in USUAL_NAMES} - {None}
        unshared = _without_shared(names, required, named)
        return ColumnMapping(format_, unshared, frozenset(found) - given)
    return None


def _is_looked_for(role: str, columns: Columns, present: Sequence[str]) -> bool:
    prompt = _pick(columns.prompt, USUAL_NAMES["prompt"], present)
    return role != "input" or prompt == ALPACA_PROMPT


def _without_shared(
    names: Mapping[str, tuple[str, ...]], required: Sequence[str], named: Collection[str | None]
) -> dict[str, tuple[str, ...]]:
    """The names without those of optional columns that another column has: a required one, or one
    that the job names."""
    taken = {*(names[role][0] for role in required), *named}
    return {
        role: each
        if role in required or len(each) == 1
        else tuple(name for name in each if name not in taken)
        for role, each in names.items()
    }


def two_columns(name: str, other: str, role: str) -> RowError:
    """The error for two columns that can both have the role, and do not hold the same."""
    return RowError(
        "UnusableColumn",
        f"the columns {name!r} and {other!r} can both be the {role}, and they differ",
        "Name the one to leave out in dataset.ignoreColumns.",
    )


def _pick(override: str | None, usual: Iterable[str], present: Sequence[str]) -> str | None:
    names = (override,) if override else usual
    return next((name for name in names if name in present), None)


def _missing_column(
    formats: Sequence[Format], columns: Columns, present: Sequence[str]
) -> RowError:
    listed = ", ".join(sorted(present)) or "none"
    return RowError(
        "MissingColumn",
        f"{_describe_missing(formats, columns, present)}; the columns are: {listed}",
        f"Name your columns in dataset.columns, or rename them to {_example(formats)}.",
    )


def _describe_missing(formats: Sequence[Format], columns: Columns, present: Sequence[str]) -> str:
    roles = {role for each in formats for role in _column_roles(each)}
    names = [getattr(columns, role, None) for role in sorted(roles)]
    if absent := [name for name in names if name and name not in present]:
        return f"there is no column {absent[0]!r}"
    # The set with the most columns present is the one that was meant.
    sets = [required for each in formats for required in REQUIRED[each]]
    found = {each: [n for n in each if _pick(None, USUAL_NAMES[n], present)] for each in sets}
    meant = max(sets, key=lambda each: len(found[each]))
    lacking = next((role for role in meant if role not in found[meant]), meant[0])
    if meant == ("prompt", "completion") and found[meant]:
        return "there is no column for the other half of the pair"
    if len(formats) > 1 and not found[meant]:
        return f"there is no column for the {sets[-1][0]}"
    return "there is no column " + " or ".join(repr(name) for name in USUAL_NAMES[lacking])


def _example(formats: Sequence[Format]) -> str:
    sets = [required for each in reversed(formats) for required in REQUIRED[each]]
    return ", or to ".join(
        " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names) for names in sets
    )
