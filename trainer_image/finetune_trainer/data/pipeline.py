"""The data half of the prepare stage: read, split, draw, tokenize, write.

The files, the spec and the model's tokenizer decide everything here; there is no clock and no
randomness but the seed's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.dataset import Format, LongRows
from finetune_api.facts import DataFacts, SourceFacts
from finetune_api.finetunejob import FineTuneJobSpec, Objective

from finetune_trainer.data.chat_template import ChatTokenizer
from finetune_trainer.data.examples import choose_examples
from finetune_trainer.data.message_forms import NO_CONTEXT
from finetune_trainer.data.mixture import draw_epoch
from finetune_trainer.data.prepared_dataset import DatasetInputs, PreparedDataset, write_dataset
from finetune_trainer.data.read_records import DatasetSamples, read_dataset
from finetune_trainer.data.round_trip import check_round_trip, leave_out_lossy_rows
from finetune_trainer.data.row_errors import LongRowError, RowError, RowErrors
from finetune_trainer.data.samples import (
    MessagesSample,
    PreferenceSample,
    PromptOnlySample,
    Sample,
    UnpairedPreferenceSample,
    unpair_preferences,
)
from finetune_trainer.data.split import Split, hold_out_fraction, hold_out_validation
from finetune_trainer.data.tokenize import SampleTokenizer, SampleTokens, apply_long_rows
from finetune_trainer.data.tokenizer import has_plain_template
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.sources.dataset_files import DataFile
from finetune_trainer.sources.download_progress import ProgressCallback

_BATCH = 256


@dataclass(frozen=True)
class TargetModel:
    """The model that the data is for."""

    tokenizer: Any
    tokenizer_digest: str
    context_length: int
    """Longest sequence in tokens, scaled by the job's rope."""
    vocabulary: int
    """Rows of the embedding, with those of new tokens."""
    date: str | None
    """The date that the chat template prints, YYYY-MM-DD; None where it prints none."""
    stop_ids: tuple[int, ...] = ()
    """Special tokens at which servers end an answer, by the model's generation settings."""


def build_dataset(
    attempt: Attempt,
    folder: Path,
    inputs: DatasetInputs,
    train: Sequence[list[DataFile]],
    validation: list[DataFile] | None,
    target: TargetModel,
    report_progress: ProgressCallback,
    sources: Sequence[SourceFacts] = (),
    check: Callable[[PreparedDataset], None] = lambda prepared: None,
) -> DataFacts:
    """Write `folder` from the files of each source; UserError where a row cannot be used.

    `sources` are the facts about the sources, which do not count the rows yet. `check` raises
    UserError where the job needs other data; then nothing is written.
    """
    spec = inputs.spec
    report_progress("reading rows", 0, None)
    samples = leave_out_lossy_rows(read_dataset(train, validation, spec), target.tokenizer)
    split = split_samples(samples, spec)
    check_round_trip(target.tokenizer, [*split.train, *split.held_out])
    tokenizer = make_sample_tokenizer(target, samples, spec)
    train_tokens, held_out_tokens = tokenize_split(
        split, tokenizer, long_rows_rule(spec), samples.errors, report_progress
    )
    samples.errors.check_share(samples.row_count)
    weights = [source.weight for source in spec.dataset.train]
    drawn_from = [tokens.sample.source for tokens in train_tokens]
    epoch, mixture = draw_epoch(drawn_from, weights, spec.dataset.temperature, spec.training.seed)
    check_vocabulary([*train_tokens, *held_out_tokens], target.vocabulary)
    prepared = PreparedDataset(
        inputs=inputs,
        format=samples.format,
        split=split,
        files=[file for listed in (*train, validation or []) for file in listed],
        sources=count_rows(sources, samples),
        train=train_tokens,
        epoch=epoch,
        mixture=mixture,
        held_out=held_out_tokens,
        examples=choose_examples(split.train, split.held_out, spec),
        template_sha256=hashlib.sha256(str(target.tokenizer.chat_template).encode()).hexdigest(),
        date=target.date,
        tokenizer_digest=target.tokenizer_digest,
        skipped=samples.errors.skipped,
        ignored_columns=samples.ignored_columns,
    )
    check(prepared)
    report_progress("writing tokens", 0, None)
    return write_dataset(attempt, folder, prepared)


def count_rows(sources: Sequence[SourceFacts], samples: DatasetSamples) -> list[SourceFacts]:
    """The facts about the sources, with the samples of each; the validation data is the last."""
    counts = Counter(sample.source for sample in samples.train)
    if samples.validation is not None:
        counts[len(sources) - 1] = len(samples.validation)
    return [
        source.model_copy(update={"rows": counts[number]}) for number, source in enumerate(sources)
    ]


def split_samples(samples: DatasetSamples, spec: FineTuneJobSpec) -> Split:
    """Hold out a fraction of the samples, or the validation data.

    For KTO a preference becomes two unpaired ones after the split, so both stay on one side.
    """
    seed = spec.training.seed
    if samples.validation is None:
        split = hold_out_fraction(samples.train, spec.dataset.holdout, seed)
    else:
        split = hold_out_validation(samples.train, samples.validation, seed)
    if spec.objective != "KTO":
        return split
    return replace(
        split,
        train=list(unpair_preferences(split.train)),
        held_out=list(unpair_preferences(split.held_out)),
    )


def make_sample_tokenizer(
    target: TargetModel, samples: DatasetSamples, spec: FineTuneJobSpec
) -> SampleTokenizer:
    """Check job against model; UserError where sequences would be too long for the model, or
    conversations need a chat template that it does not have."""
    max_length = spec.training.max_sequence_length
    if max_length > target.context_length:
        raise UserError(
            "ContextTooLong",
            f"training.maxSequenceLength is {max_length} and the model's context "
            f"{target.context_length}.",
            f"Set training.maxSequenceLength to {target.context_length} or less.",
        )
    max_new_tokens = spec.grpo.max_new_tokens if spec.grpo else 0
    if max_new_tokens >= max_length:
        raise UserError(
            "AnswerTooLong",
            f"grpo.maxNewTokens is {max_new_tokens} and training.maxSequenceLength {max_length}: "
            "nothing is left for the prompt.",
            "Raise training.maxSequenceLength or lower grpo.maxNewTokens.",
        )
    if has_plain_template(target.tokenizer) and any(
        _needs_chat_template(samples.format, sample) for sample in samples.train
    ):
        raise UserError(
            "NoChatTemplate",
            "The data are conversations, but the model has no chat template.",
            "Use the instruct release of the model, give model.tokenizer.chatTemplate, or give "
            "prompt and completion columns.",
        )
    chat = ChatTokenizer(
        target.tokenizer,
        max_length,
        target.context_length,
        learn_prompts=bool(spec.sft and spec.sft.loss_on == "All"),
        keep_tail=spec.objective == "Reward",
        stop_ids=target.stop_ids,
    )
    return SampleTokenizer(target.tokenizer, chat, max_length, max_new_tokens)


def _needs_chat_template(format_: Format, sample: Sample) -> bool:
    """One prompt with one answer needs none."""
    match sample:
        case MessagesSample():
            needs_more = len(sample.turns) > 3 or not all(turn.is_plain for turn in sample.turns)
            return format_ == "chat" or needs_more or sample.context != NO_CONTEXT
        case PreferenceSample():
            return len(sample.prompt) > 2 or len(sample.chosen) > 1 or len(sample.rejected) > 1
        case UnpairedPreferenceSample():
            return len(sample.prompt) > 2 or len(sample.completion) > 1
        case PromptOnlySample():
            return len(sample.prompt) > 2
    return False


def long_rows_rule(spec: FineTuneJobSpec) -> LongRows:
    """dataset.longRows, or its default."""
    defaults: dict[Objective, LongRows] = {"Completion": "Split", "GRPO": "Fail"}
    return spec.dataset.long_rows or defaults.get(spec.objective, "Truncate")


def tokenize_split(
    split: Split,
    tokenizer: SampleTokenizer,
    long_rows: LongRows,
    errors: RowErrors,
    report_progress: ProgressCallback,
) -> tuple[list[SampleTokens], list[SampleTokens]]:
    """The tokens of both sides; the shorter first, because it may have a row error too.

    Raises UserError where a side has no row left.
    """
    total = len(split.train) + len(split.held_out)

    def report_from(offset: int) -> Callable[[int], None]:
        return lambda done: report_progress(
            f"tokenising {offset + done}/{total}", offset + done, total
        )

    held_out = tokenize_samples(split.held_out, tokenizer, long_rows, errors, report_from(0))
    train = tokenize_samples(
        split.train, tokenizer, long_rows, errors, report_from(len(split.held_out))
    )
    for tokens, what in ((train, "learn from"), (held_out, "evaluate on")):
        if not tokens:
            raise UserError(
                "TooFewRows",
                f"No row is left to {what}: {len(errors.skipped)} were left out.",
                "Change dataset.longRows or dataset.invalidRows, or correct the rows.",
            )
    return train, held_out


def tokenize_samples(
    samples: Sequence[Sample],
    tokenizer: SampleTokenizer,
    long_rows: LongRows,
    errors: RowErrors,
    report_done: Callable[[int], None],
) -> list[SampleTokens]:
    """The tokens of the samples that are kept; UserError where one cannot be used."""
    found: list[SampleTokens] = []
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        for sample, tokens in zip(batch, tokenizer.tokenize(batch), strict=True):
            kept = tokens if isinstance(tokens, RowError) else apply_long_rows(tokens, long_rows)
            if not isinstance(kept, RowError):
                found.append(kept)
            elif isinstance(kept, LongRowError) and long_rows == "Skip":
                errors.skip(kept, sample.file, sample.line)
            else:
                errors.add(kept, sample.file, sample.line)
        report_done(start + len(batch))
    errors.raise_if_any()
    return found


def check_vocabulary(samples: Sequence[SampleTokens], vocabulary: int) -> None:
    """UserError where a token has no row in the embedding: training would crash on it."""
    highest = max(int(np.max(each.tokens)) for tokens in samples for each in tokens.tokenized)
    if highest >= vocabulary:
        raise embedding_too_small(highest, vocabulary)


def embedding_too_small(token: int, vocabulary: int) -> UserError:
    """The tokenizer produces a token that the embedding does not have."""
    return UserError(
        "UnsupportedModel",
        f"The tokenizer gives token {token}, but the model's embedding has only {vocabulary} rows.",
        "Use the tokenizer that belongs to the model.",
    )
