"""Reads every source of a data set: files to records to samples, each error with file and line.

The first record of a source settles its column mapping (see columns), and every record of it
becomes a sample by that mapping (see samples). All sources must have one format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.dataset import Format
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.objective import REFERENCE_REWARDS

from finetune_trainer.data.columns import ColumnMapping, find_column_mapping
from finetune_trainer.data.file_formats import iter_records
from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.data.samples import PromptOnlySample, Sample, make_sample
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_files import DataFile


@dataclass(frozen=True)
class DatasetSamples:
    """The samples of all sources of a job."""

    format: Format
    train: list[Sample]
    validation: list[Sample] | None


def read_dataset(
    train: Sequence[list[DataFile]], validation: list[DataFile] | None, spec: FineTuneJobSpec
) -> DatasetSamples:
    """All sources; UserError where one cannot be used or has another format than the first."""
    format_, samples = read_samples(train[0], spec)
    for index, files in enumerate(train[1:], 1):
        samples += _read_in_format(format_, files, spec, index)
    held_out = _read_in_format(format_, validation, spec) if validation else None
    return DatasetSamples(format_, samples, held_out)


def _read_in_format(
    format_: Format, files: list[DataFile], spec: FineTuneJobSpec, source: int = 0
) -> list[Sample]:
    found, samples = read_samples(files, spec, source)
    if found != format_:
        first = samples[0]
        raise UserError(
            "MixedFormats",
            f"Line {first.line} of {first.file} is of the format {found}, and the first source of "
            f"the format {format_}.",
            "Give all sources one format, or set dataset.format and dataset.columns.",
            file=first.file,
            line=first.line,
        )
    return samples


def read_samples(
    files: list[DataFile], spec: FineTuneJobSpec, source: int = 0
) -> tuple[Format, list[Sample]]:
    """The samples of one source; UserError with file and line where a row cannot be used."""
    errors = RowErrors()
    mapping: ColumnMapping | None = None
    samples: list[Sample] = []
    dataset = spec.dataset
    rewards = spec.grpo.rewards if spec.grpo else ()
    needs_reference = any(reward.type in REFERENCE_REWARDS for reward in rewards)
    for record in iter_records(files, errors):
        try:
            if mapping is None:
                present = list(record.values)
                mapping = find_column_mapping(
                    dataset.format, dataset.columns, present, spec.objective
                )
            sample = make_sample(record, mapping, source)
            if needs_reference:
                _check_reference(sample)
        except RowError as error:
            errors.add(error, record.file, record.line)
            if mapping is None:
                break
        else:
            samples.append(sample)
    errors.raise_if_any()
    if mapping is None:
        names = [file.name for file in files]
        raise UserError(
            "EmptyDataset",
            f"There is no row in {', '.join(names)}.",
            "Check that the upload is complete and that dataset.train names the right file.",
            file=files[0].name,
        )
    return mapping.format, samples


def _check_reference(sample: Sample) -> None:
    if isinstance(sample, PromptOnlySample) and not (sample.reference or "").strip():
        raise RowError(
            "ReferenceMissing",
            "it has no right answer, which a reward function of grpo.rewards compares with",
            "Name its column in dataset.columns.reference, or use other rewards.",
        )
