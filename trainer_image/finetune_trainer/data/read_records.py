"""Reads every source of a data set: files to records to samples, each error with file and line.

The first record of a source settles its column mapping (see columns), and every record of it
becomes a sample by that mapping (see samples). All sources must have one format.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from finetune_api.dataset import Format
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.objective import REFERENCE_REWARDS

from finetune_trainer.data.columns import (
    ColumnMapping,
    check_named_columns,
    find_column_mapping,
)
from finetune_trainer.data.file_formats import Record, iter_records
from finetune_trainer.data.foreign_files import BINARY_SUFFIXES
from finetune_trainer.data.message_forms import NO_CONTEXT
from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.data.samples import (
    PreferenceSample,
    PromptOnlySample,
    Sample,
    make_sample,
)
from finetune_trainer.data.tool_calls import drop_nulls, is_empty
from finetune_trainer.data.turns import parse_turns, unused_turn_keys
from finetune_trainer.metrics.numbers import find_last_number
from finetune_trainer.metrics.rouge import words
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_files import DataFile
from finetune_trainer.sources.row_files import format_suffix

_TURN_ROLES = {"messages", "prompt", "chosen", "rejected", "completion"}
"""Columns that can hold turns."""
_MARGIN = "margin"
"""The column with which TRL's reward trainer weighs a preference."""


@dataclass(frozen=True)
class DatasetSamples:
    """The samples of all sources of a job."""

    format: Format
    train: list[Sample]
    validation: list[Sample] | None
    errors: RowErrors
    """With the rows that were left out so far."""
    row_count: int
    """Rows of all sources, with those that were left out."""
    ignored_columns: tuple[str, ...] = ()
    """Columns, and keys of turns, that hold something and are not used."""


@dataclass
class SourceReader:
    """Reads the sources of one job, one after the other."""

    spec: FineTuneJobSpec
    errors: RowErrors
    format: Format | None = None
    """Of the first source."""
    row_count: int = 0
    ignored: set[str] = field(default_factory=set)

    @cached_property
    def _reference_rewards(self) -> frozenset[str]:
        """Rewards of the job that compare with a right answer."""
        rewards = self.spec.grpo.rewards if self.spec.grpo else ()
        return frozenset(REFERENCE_REWARDS).intersection(reward.type for reward in rewards)

    def read(self, files: list[DataFile], source: int = 0) -> list[Sample]:
        """The samples of one source; UserError with file and line where a row cannot be used."""
        mapping: ColumnMapping | None = None
        samples: list[Sample] = []
        present: set[str] = set()
        skipped_before = len(self.errors.skipped)
        for record in self._iter_records(files):
            present |= record.values.keys()
            try:
                mapping = mapping or self._find_mapping(record)
                samples.append(self._make_sample(record, mapping, source))
            except (RowError, RecursionError) as error:
                row_error = error if isinstance(error, RowError) else _nested_too_deeply()
                self.errors.add(row_error, record.file, record.line)
                if mapping is None and self.errors.errors:
                    break  # the next row would settle what the columns of all rows mean
        self.errors.raise_if_any()
        self.row_count += len(samples) + len(self.errors.skipped) - skipped_before
        if mapping is None or not samples:
            raise self._no_rows(files)
        self._check_source(mapping, samples[0], present)
        return samples

    def _iter_records(self, files: list[DataFile]) -> Iterator[Record]:
        ignored = set(self.spec.dataset.ignore_columns)
        binary = {file.name for file in files if format_suffix(file.name) in BINARY_SUFFIXES}
        for record in iter_records(files, self.errors):
            values = record.values
            if found := ignored & values.keys():
                self.ignored |= found
                values = {name: each for name, each in values.items() if name not in found}
            if record.file in binary:
                values = {name: drop_nulls(each) for name, each in values.items()}
            yield record if values is record.values else replace(record, values=values)

    def _find_mapping(self, record: Record) -> ColumnMapping:
        dataset = self.spec.dataset
        present = [str(name) for name in record.values]
        return find_column_mapping(dataset.format, dataset.columns, present, self.spec.objective)

    def _make_sample(self, record: Record, mapping: ColumnMapping, source: int) -> Sample:
        unused = mapping.find_unused(record.values)
        if self.spec.objective == "Reward" and _MARGIN in unused:
            raise RowError(
                "UnusableColumn",
                f"the column {_MARGIN!r} sets how much better the chosen answer is, which cannot "
                "be used",
                "Name it in dataset.ignoreColumns to train without it.",
            )
        sample = make_sample(record, mapping, source)
        if self._reference_rewards:
            name, _ = mapping.find(record.values, "reference")
            _check_reference(sample, name, self._reference_rewards)
        if self.spec.grpo and self.spec.grpo.reward_model:
            _check_for_reward_model(sample)
        if self.spec.sft and self.spec.sft.loss_on == "All" and mapping.has("messages"):
            _check_end(mapping.require(record.values, "messages")[1])
        self.ignored |= unused
        if isinstance(sample, PromptOnlySample) and mapping.has("messages"):
            self._note_unused_answer(record, mapping)
        if isinstance(sample, PreferenceSample):
            self._note_unused_conversation(record, mapping)
        for role in _TURN_ROLES & mapping.names.keys():
            name, value = mapping.find(record.values, role)
            if keys := unused_turn_keys(value):
                self.ignored |= {f"{name}[].{key}" for key in keys}
        return sample

    def _note_unused_answer(self, record: Record, mapping: ColumnMapping) -> None:
        """An answer at the end of the conversation is a reference, unless a column has that; its
        calls and its reasoning are not used."""
        name, value = mapping.require(record.values, "messages")
        last = parse_turns(value)[-1]
        if last.role != "assistant":
            return
        has_reference = not is_empty(mapping.find(record.values, "reference")[1])
        unused = {
            "content": has_reference and last.content,
            "reasoning": last.reasoning,
            "tool_calls": last.tool_calls,
        }
        self.ignored |= {f"{name}[-1].{key}" for key, each in unused.items() if each}

    def _note_unused_conversation(self, record: Record, mapping: ColumnMapping) -> None:
        """A conversation next to the prompt of a preference is only compared with it."""
        name, value = mapping.find(record.values, "messages")
        if not is_empty(value) and not is_empty(mapping.find(record.values, "prompt")[1]):
            self.ignored.add(name)

    def _check_source(self, mapping: ColumnMapping, first: Sample, present: set[str]) -> None:
        self.format = self.format or mapping.format
        if mapping.format != self.format:
            raise UserError(
                "MixedFormats",
                f"Line {first.line} of {first.file} is of the format {mapping.format}, and the "
                f"first source of the format {self.format}.",
                "Give all sources one format, or set dataset.format and dataset.columns.",
                file=first.file,
                line=first.line,
            )
        try:
            check_named_columns(self.spec.dataset.columns, mapping, present)
        except RowError as error:
            raise UserError(
                error.reason, f"{first.file}: {error.message}.", error.remedy, file=first.file
            ) from None

    def _no_rows(self, files: list[DataFile]) -> UserError:
        names = ", ".join(file.name for file in files)
        if first := next((row for row in self.errors.skipped if not row.is_long), None):
            return UserError(
                first.reason,
                f"No row of {names} can be used; line {first.line} of {first.file}: "
                f"{first.message}.",
                "Correct the rows.",
                file=first.file,
                line=first.line,
            )
        return UserError(
            "EmptyDataset",
            f"There is no row in {names}.",
            "Check that the upload is complete and that dataset.train names the right file.",
            file=files[0].name,
        )


def read_dataset(
    train: Sequence[list[DataFile]], validation: list[DataFile] | None, spec: FineTuneJobSpec
) -> DatasetSamples:
    """All sources; UserError where one cannot be used or has another format than the first."""
    errors = RowErrors(spec.dataset.invalid_rows)
    reader = SourceReader(spec, errors)
    samples = [sample for index, files in enumerate(train) for sample in reader.read(files, index)]
    held_out = reader.read(validation) if validation else None
    assert reader.format
    errors.check_share(reader.row_count)
    return DatasetSamples(
        reader.format,
        samples,
        held_out,
        errors,
        reader.row_count,
        tuple(sorted(reader.ignored)),
    )


def read_samples(
    files: list[DataFile], spec: FineTuneJobSpec, source: int = 0
) -> tuple[Format, list[Sample]]:
    """Format and samples of one source; UserError where a row cannot be used."""
    reader = SourceReader(spec, RowErrors(spec.dataset.invalid_rows))
    samples = reader.read(files, source)
    assert reader.format
    return reader.format, samples


def _nested_too_deeply() -> RowError:
    return RowError("BrokenRow", "a value is nested too deeply", "Simplify it.")


def _check_end(conversation: Any) -> None:
    """RowError where a conversation ends with turns that would be cut, though all are learnt."""
    if not parse_turns(conversation)[-1].is_learnt:
        raise RowError(
            "BadConversation",
            "its last answer has weight 0, so sft.lossOn All would not learn the turns before it",
            "Remove the turns after the last answer that is learnt.",
        )


def _check_for_reward_model(sample: Sample) -> None:
    assert isinstance(sample, PromptOnlySample)
    is_plain = all(turn.is_plain for turn in sample.prompt)
    if not is_plain or sample.context != NO_CONTEXT:
        raise RowError(
            "UnusableColumn",
            "it has tools, documents or reasoning, which the reward model would not get",
            "Leave grpo.rewardModel out, or remove them from the rows.",
        )


def _check_reference(sample: Sample, name: str, rewards: Collection[str]) -> None:
    assert isinstance(sample, PromptOnlySample)
    reference = (sample.reference or "").strip()
    if not reference:
        raise RowError(
            "ReferenceMissing",
            f"it has no right answer in the column {name!r}, which a reward function of "
            "grpo.rewards compares with",
            "Name its column in dataset.columns.reference, or use other rewards.",
        )
    if "rougeL" in rewards and not words(reference):
        raise RowError(
            "ReferenceMissing",
            f"its right answer {reference[:40]!r} has no word, which the reward rougeL compares "
            "with: every answer would score 0",
            "Use exactMatch or contains.",
        )
    if "numeric" in rewards and find_last_number(reference) is None:
        raise RowError(
            "ReferenceMissing",
            f"its right answer {reference[:40]!r} has no number, which the reward numeric compares "
            "with: every answer would score 0",
            "Write the number in a form of docs/tasks/score-answers.md, or use exactMatch.",
        )
