"""The column mapping of a source: its format, and which column holds what.

A format is a set of columns. The objective decides which formats are possible, and the first of
them whose columns are present is taken, unless the job names one. The job's `columns` and the first
record of a source settle the mapping, and it holds for every record of that source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from finetune_api import combinations
from finetune_api.dataset import Format
from finetune_api.finetunejob import Columns, Objective

from finetune_trainer.data.row_errors import RowError

MESSAGES = ("messages", "conversations")
PROMPT = ("prompt", "instruction", "question")
COMPLETION = ("completion", "output", "response", "answer")
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "messages": MESSAGES,
    "prompt": PROMPT,
    "completion": COMPLETION,
    "system": ("system",),
    "text": ("text", "content"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
    "reference": ("reference", "answer", "solution", "completion"),
}
"""Names of columns where the job gives none, in the order in which they are tried."""
ALPACA_PROMPT, ALPACA_INPUT = "instruction", "input"

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
OPTIONAL: Mapping[Format, tuple[str, ...]] = {
    "chat": (),
    "instruction": ("system",),
    "completion": (),
    "preference": ("prompt", "messages", "system"),
    "unpaired": ("system",),
    "prompt": ("system", "reference"),
}


@dataclass(frozen=True)
class ColumnMapping:
    """The format, and the names of its columns; None where there is none."""

    format: Format
    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    system: str | None = None
    input: str | None = None
    """Alpaca's second half of the prompt."""
    text: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None
    reference: str | None = None


def find_column_mapping(
    format_: str, columns: Columns, present: Sequence[str], objective: Objective = "SFT"
) -> ColumnMapping:
    """The mapping of a source whose first record has the columns `present`.

    `format_` and `columns` are the job's. Raises RowError where no format fits.
    """
    possible: tuple[Format, ...] = FORMATS[objective]
    possible = possible if format_ == "auto" else tuple(f for f in REQUIRED if f == format_)
    named = {f.name for f in fields(ColumnMapping)} & {n for n, v in columns.to_wire().items() if v}
    # A column that the job names must be used, so it decides which format is meant.
    meant = tuple(each for each in possible if named and named <= _column_roles(each))
    for candidate in meant or possible:
        if mapping := _match_format(candidate, columns, present):
            _check_used(named, candidate)
            return mapping
    raise _missing_column(meant or possible, columns, present)


def _check_used(named: set[str], format_: Format) -> None:
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
        roles = (*required, *(role for role in OPTIONAL[format_] if role not in required))
        found = {role: _pick(getattr(columns, role), USUAL_NAMES[role], present) for role in roles}
        absent = [role for role in roles if getattr(columns, role) and not found[role]]
        if all(found[role] for role in required) and not absent:
            is_alpaca = found.get("prompt") == ALPACA_PROMPT and not columns.prompt
            extra = ALPACA_INPUT if is_alpaca and ALPACA_INPUT in present else None
            return ColumnMapping(format_, input=extra, **found)
    return None


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
    names = [getattr(columns, role) for role in sorted(roles)]
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
