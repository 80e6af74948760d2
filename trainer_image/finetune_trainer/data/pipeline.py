"""The way from files to `data/`: read, split, draw, encode, write.

Everything here is decided by the files, the spec and the model's tokenizer; there is no clock and
no chance but the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.dataset import Format
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import DataFacts

from finetune_trainer.data.chat_template import ChatTokenizer
from finetune_trainer.data.messages import MessagesSample, Sample
from finetune_trainer.data.mixture import draw
from finetune_trainer.data.prepared_dataset import Inputs, Prepared, write_data
from finetune_trainer.data.read_records import Rows, read_all
from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.data.samples import (
    PreferenceSample,
    PromptOnlySample,
    UnpairedPreferenceSample,
    as_rated,
)
from finetune_trainer.data.split import Split, holdout, with_validation
from finetune_trainer.data.tokenize import Coded, SampleTokenizer
from finetune_trainer.data.tokenizer import is_plain
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.sources.dataset_files import DataFile
from finetune_trainer.sources.download_progress import Tell

_BATCH = 256


@dataclass(frozen=True)
class Target:
    """The model that the data is for."""

    tokenizer: Any
    tokenizer_digest: str
    context: int
    """Longest sequence in tokens, stretched by the job's rope."""
    vocabulary: int
    """Rows of the embedding, with those of new tokens."""
    date: str | None
    """Day that the chat template is given, where it prints one."""


def make_data(
    attempt: Attempt,
    folder: Path,
    inputs: Inputs,
    train: Sequence[list[DataFile]],
    validation: list[DataFile] | None,
    target: Target,
    tell: Tell,
) -> DataFacts:
    """Write `folder` from the files of each source; UserError where a row cannot be used."""
    spec = inputs.spec
    tell("reading rows", 0, None)
    rows = read_all(train, validation, spec)
    split = split_rows(rows, spec)
    weights = [source.weight for source in spec.dataset.train]
    sources = [unit.source for unit in split.train]
    drawn, tasks = draw(sources, weights, spec.dataset.temperature, spec.training.seed)
    encoder = make_encoder(target, rows, spec)
    learnt, held_out = encode_split(split, encoder, tell)
    check_vocabulary([*learnt, *held_out], target.vocabulary)
    tell("writing tokens", 0, None)
    prepared = Prepared(
        inputs=inputs,
        format=rows.format,
        split=split,
        files=[file for listed in (*train, validation or []) for file in listed],
        train=learnt,
        drawn=drawn,
        tasks=tasks,
        held_out=held_out,
        template=hashlib.sha256(str(target.tokenizer.chat_template).encode()).hexdigest(),
        date=target.date,
        tokenizer_digest=target.tokenizer_digest,
    )
    return write_data(attempt, folder, prepared)


def split_rows(rows: Rows, spec: FineTuneJobSpec) -> Split:
    """Hold out a share of the rows, or take the validation data for it.

    For KTO pairs become two rated answers, after the split: both stay on one side.
    """
    seed = spec.training.seed
    if rows.validation is None:
        split = holdout(rows.train, spec.dataset.holdout, seed)
    else:
        split = with_validation(rows.train, rows.validation, seed)
    if spec.objective != "KTO":
        return split
    train, held_out = (list(as_rated(side)) for side in (split.train, split.held_out))
    return Split(train, held_out, split.duplicates, split.removed)


def make_encoder(target: Target, rows: Rows, spec: FineTuneJobSpec) -> SampleTokenizer:
    """Check job against model; UserError where a sequence or a chat cannot be had."""
    longest = spec.training.max_sequence_length
    if longest > target.context:
        raise UserError(
            "ContextTooLong",
            f"training.maxSequenceLength is {longest} and the model's context {target.context}.",
            f"Set training.maxSequenceLength to {target.context} or less.",
        )
    answer = spec.grpo.max_new_tokens if spec.grpo else 0
    if answer >= longest:
        raise UserError(
            "AnswerTooLong",
            f"grpo.maxNewTokens is {answer} and training.maxSequenceLength {longest}: nothing is "
            "left for the prompt.",
            "Raise training.maxSequenceLength or lower grpo.maxNewTokens.",
        )
    if is_plain(target.tokenizer) and any(_is_chat(rows.format, unit) for unit in rows.train):
        raise UserError(
            "NoChatTemplate",
            "The data are conversations, but the model has no chat template.",
            "Use the instruct release of the model, give model.tokenizer.chatTemplate, or give "
            "prompt and completion columns.",
        )
    whole = bool(spec.sft and spec.sft.loss_on == "All")
    scored = spec.objective == "Reward"
    chat = ChatTokenizer(target.tokenizer, longest, target.context, whole, scored)
    return SampleTokenizer(target.tokenizer, chat, longest, answer)


def _is_chat(form: Format, unit: Sample) -> bool:
    """Whether a row needs a template: one question with one answer can do without."""
    match unit:
        case MessagesSample():
            return form == "chat"
        case PreferenceSample():
            return len(unit.prompt) > 2 or len(unit.chosen) > 1 or len(unit.rejected) > 1
        case UnpairedPreferenceSample():
            return len(unit.prompt) > 2 or len(unit.answer) > 1
        case PromptOnlySample():
            return len(unit.prompt) > 2
    return False


def encode_split(
    split: Split, encoder: SampleTokenizer, tell: Tell
) -> tuple[list[Coded], list[Coded]]:
    """Both sides as tokens, the shorter first because a fault may be in it too."""
    total = len(split.train) + len(split.held_out)

    def from_row(offset: int) -> Callable[[int], None]:
        return lambda done: tell(f"tokenising {offset + done}/{total}", offset + done, total)

    held_out = encode_all(split.held_out, encoder, from_row(0))
    return encode_all(split.train, encoder, from_row(len(held_out))), held_out


def encode_all(
    units: Sequence[Sample], encoder: SampleTokenizer, tell: Callable[[int], None]
) -> list[Coded]:
    """Tokens of every unit; UserError where one cannot be used. `tell` is given the units done."""
    bad = RowErrors()
    found: list[Coded] = []
    for start in range(0, len(units), _BATCH):
        batch = units[start : start + _BATCH]
        for unit, coded in zip(batch, encoder.encode(batch), strict=True):
            if isinstance(coded, RowError):
                bad.add(coded, unit.file, unit.line)
            else:
                found.append(coded)
        tell(start + len(batch))
    bad.check()
    return found


def check_vocabulary(rows: Sequence[Coded], vocabulary: int) -> None:
    """UserError where a token has no row in the embedding: training would crash on it."""
    highest = max(int(np.max(each.tokens)) for row in rows for each in row.examples)
    if highest >= vocabulary:
        raise too_few_rows(highest, vocabulary)


def too_few_rows(token: int, vocabulary: int) -> UserError:
    """The tokenizer gives a token that the embedding does not have."""
    return UserError(
        "UnsupportedModel",
        f"The tokenizer gives token {token}, but the model's embedding has only {vocabulary} rows.",
        "Use the tokenizer that belongs to the model.",
    )
