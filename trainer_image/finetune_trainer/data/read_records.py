"""From files to units: every source of a job in one format, every fault with file and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.dataset import Format
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_trainer.data.columns import ColumnMapping, find_layout
from finetune_trainer.data.file_formats import read_rows
from finetune_trainer.data.messages import Sample
from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.data.samples import PromptOnlySample, to_unit
from finetune_trainer.rewards.functions import COMPARING
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_files import DataFile


@dataclass(frozen=True)
class Rows:
    """What a job's sources hold."""

    format: Format
    train: list[Sample]
    validation: list[Sample] | None


def read_all(
    train: Sequence[list[DataFile]], validation: list[DataFile] | None, spec: FineTuneJobSpec
) -> Rows:
    """All sources; UserError where one cannot be used or has another format than the first."""
    form, units = read_units(train[0], spec)
    for index, files in enumerate(train[1:], 1):
        units += _in_format(form, files, spec, index)
    return Rows(form, units, _in_format(form, validation, spec) if validation else None)


def _in_format(
    form: Format, files: list[DataFile], spec: FineTuneJobSpec, source: int = 0
) -> list[Sample]:
    other, units = read_units(files, spec, source)
    if other != form:
        first = units[0]
        raise UserError(
            "MixedFormats",
            f"Line {first.line} of {first.file} is of the format {other}, and the first source of "
            f"the format {form}.",
            "Give all sources one format, or set dataset.format and dataset.columns.",
            file=first.file,
            line=first.line,
        )
    return units


def read_units(
    files: list[DataFile], spec: FineTuneJobSpec, source: int = 0
) -> tuple[Format, list[Sample]]:
    """All rows of one source; UserError with file and line where one cannot be used."""
    bad = RowErrors()
    layout: ColumnMapping | None = None
    found: list[Sample] = []
    dataset = spec.dataset
    compared = any(each.type in COMPARING for each in (spec.grpo.rewards if spec.grpo else ()))
    for row in read_rows(files, bad):
        try:
            if layout is None:
                names = list(row.values)
                layout = find_layout(dataset.format, dataset.columns, names, spec.objective)
            unit = to_unit(row.values, layout, row.file, row.line, source)
            if compared:
                _check_reference(unit)
        except RowError as error:
            bad.add(error, row.file, row.line)
            if layout is None:
                break
        else:
            found.append(unit)
    bad.check()
    if layout is None:
        names = [file.name for file in files]
        raise UserError(
            "EmptyDataset",
            f"There is no row in {', '.join(names)}.",
            "Check that the upload is whole and dataset.train names the right file.",
            file=files[0].name,
        )
    return layout.format, found


def _check_reference(unit: Sample) -> None:
    if isinstance(unit, PromptOnlySample) and not (unit.reference or "").strip():
        raise RowError(
            "ReferenceMissing",
            "it has no right answer, which a reward function of grpo.rewards compares with",
            "Name its column in dataset.columns.reference, or use other rewards.",
        )
