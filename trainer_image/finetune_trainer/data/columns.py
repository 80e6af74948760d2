"""Which columns of a file hold what.

A format is a set of columns. Which formats may be meant follows from the objective, and the first
of them whose columns are there is taken, unless the job says which one. It is settled once for a
source, by the job's `columns` and the first row, and holds for every row of it.
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
USUAL: Mapping[str, tuple[str, ...]] = {
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
"""What columns are called where the job does not say."""
ALPACA_PROMPT, ALPACA_INPUT = "instruction", "input"

FORMATS: Mapping[Objective, tuple[Format, ...]] = {
    objective: formats
    for objectives, formats in combinations.FORMATS.items()
    for objective in objectives
}
NEEDED: Mapping[Format, tuple[tuple[str, ...], ...]] = {
    "chat": (("messages",),),
    "instruction": (("prompt", "completion"),),
    "completion": (("text",),),
    "preference": (("chosen", "rejected"),),
    "unpaired": (("prompt", "completion", "label"), ("messages", "label")),
    "prompt": (("prompt",), ("messages",)),
}
"""Columns without which a row is not of the format; any one of the sets will do."""
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


def find_layout(
    wanted: str, columns: Columns, present: Sequence[str], objective: Objective = "SFT"
) -> ColumnMapping:
    """The layout of a source whose first row has the columns `present`; BadRow where none fits."""
    formats: tuple[Format, ...] = FORMATS[objective]
    formats = formats if wanted == "auto" else tuple(f for f in NEEDED if f == wanted)
    given = {f.name for f in fields(ColumnMapping)} & {n for n, v in columns.to_wire().items() if v}
    # A column that the job names must be used: it tells which format is meant.
    named = tuple(form for form in formats if given and given <= _known(form))
    for form in named or formats:
        if layout := _layout(form, columns, present):
            _check_used(given, form)
            return layout
    raise _no_layout(named or formats, columns, present)


def _check_used(given: set[str], form: Format) -> None:
    if unused := sorted(given - _known(form)):
        raise RowError(
            "UnusedColumn",
            f"dataset.columns.{unused[0]} is given, but rows of the format {form} have no such "
            "column",
            "Leave it out, or set dataset.format.",
        )


def _known(form: Format) -> set[str]:
    return {name for names in NEEDED[form] for name in names} | set(OPTIONAL[form])


def _layout(form: Format, columns: Columns, present: Sequence[str]) -> ColumnMapping | None:
    for needed in NEEDED[form]:
        names = (*needed, *(name for name in OPTIONAL[form] if name not in needed))
        found = {name: _pick(getattr(columns, name), USUAL[name], present) for name in names}
        absent = [name for name in names if getattr(columns, name) and not found[name]]
        if all(found[name] for name in needed) and not absent:
            alpaca = found.get("prompt") == ALPACA_PROMPT and not columns.prompt
            extra = ALPACA_INPUT if alpaca and ALPACA_INPUT in present else None
            return ColumnMapping(form, input=extra, **found)
    return None


def _pick(override: str | None, usual: Iterable[str], present: Sequence[str]) -> str | None:
    names = (override,) if override else usual
    return next((name for name in names if name in present), None)


def _no_layout(formats: Sequence[Format], columns: Columns, present: Sequence[str]) -> RowError:
    listed = ", ".join(sorted(present)) or "none"
    missing = _missing(formats, columns, present)
    return RowError(
        "MissingColumn",
        f"{missing}; the columns are: {listed}",
        f"Name your columns in dataset.columns, or rename them to {_example(formats)}.",
    )


def _missing(formats: Sequence[Format], columns: Columns, present: Sequence[str]) -> str:
    named = {name for form in formats for name in _known(form)}
    overrides = [getattr(columns, name) for name in sorted(named)]
    if absent := [name for name in overrides if name and name not in present]:
        return f"there is no column {absent[0]!r}"
    # The set of which most is there is the one that was meant.
    sets = [names for form in formats for names in NEEDED[form]]
    here = {names: [n for n in names if _pick(None, USUAL[n], present)] for names in sets}
    meant = max(sets, key=lambda names: len(here[names]))
    lacking = next((name for name in meant if name not in here[meant]), meant[0])
    if meant == ("prompt", "completion") and here[meant]:
        return "there is no column for the other half of the pair"
    if len(formats) > 1 and not here[meant]:
        return f"there is no column for the {sets[-1][0]}"
    return "there is no column " + " or ".join(repr(name) for name in USUAL[lacking])


def _example(formats: Sequence[Format]) -> str:
    sets = [names for form in reversed(formats) for names in NEEDED[form]]
    return ", or to ".join(
        " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names) for names in sets
    )
