"""Samples: one row each, in the form that its objective learns from.

The kinds are TRL's: messages (which prompt and completion become too), text, preference, unpaired
preference and prompt only. A sample is what stays on one side of the split, what the mixture draws,
and what is counted as a row. Its key is a digest of its content and not of its place, so equal
samples are recognised wherever they are.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from finetune_api.dataset import Format

from finetune_trainer.data.columns import ColumnMapping
from finetune_trainer.data.file_formats import Record
from finetune_trainer.data.messages import (
    Turn,
    Turns,
    check_completion,
    check_conversation,
    check_prompt,
    parse_messages,
    read_instruction,
    read_prompt,
    read_system_turn,
    read_turns,
    require_column,
    require_nonblank,
    require_text,
    to_messages,
)
from finetune_trainer.data.row_errors import RowError

Values = Mapping[str, Any]
"""The columns of one record."""
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True, kw_only=True)
class Sample(ABC):
    """One row of the data, of any kind."""

    file: str = ""
    line: int = 0
    source: int = 0
    """Index of its source in dataset.train."""

    @property
    @abstractmethod
    def content(self) -> Any:
        """The text of all its messages, as JSON, without its place."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Its line of eval.jsonl or train.jsonl."""

    @property
    def key(self) -> bytes:
        """SHA-256 of the content: equal samples have equal keys, wherever they are."""
        return hashlib.sha256(json.dumps(self.content).encode()).digest()


@dataclass(frozen=True)
class MessagesSample(Sample):
    """A conversation that ends with the assistant's turn."""

    turns: Turns
    prompt_turns: int = 0
    """Turns at the beginning that are not learnt, not even the assistant's."""

    @property
    def content(self) -> Any:
        return role_content_pairs(self.turns)

    def to_json(self) -> dict[str, Any]:
        return {"messages": to_messages(self.turns[:-1]), "reference": self.turns[-1].content}


@dataclass(frozen=True)
class TextSample(Sample):
    """A document of continued pre-training."""

    text: str

    @property
    def content(self) -> Any:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Its place only: a document is too long to be repeated."""
        return {"file": self.file, "line": self.line}


@dataclass(frozen=True)
class PreferenceSample(Sample):
    """A prompt, the better answer and the worse one."""

    prompt: Turns
    chosen: Turns
    rejected: Turns

    @property
    def content(self) -> Any:
        return [role_content_pairs(turns) for turns in (self.prompt, self.chosen, self.rejected)]

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": to_messages(self.prompt),
            "chosen": self.chosen[-1].content,
            "rejected": self.rejected[-1].content,
        }

    def unpair(self) -> tuple[UnpairedPreferenceSample, UnpairedPreferenceSample]:
        """The better answer as a desirable one, the worse answer as an undesirable one."""
        make = partial(
            UnpairedPreferenceSample,
            self.prompt,
            file=self.file,
            line=self.line,
            source=self.source,
        )
        return make(self.chosen, True), make(self.rejected, False)


@dataclass(frozen=True)
class UnpairedPreferenceSample(Sample):
    """A prompt and an answer that is desirable or not."""

    prompt: Turns
    completion: Turns
    is_desirable: bool

    @property
    def content(self) -> Any:
        pairs = [role_content_pairs(turns) for turns in (self.prompt, self.completion)]
        return [*pairs, self.is_desirable]

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": to_messages(self.prompt),
            "completion": self.completion[-1].content,
            "label": self.is_desirable,
        }


@dataclass(frozen=True)
class PromptOnlySample(Sample):
    """A prompt that the model answers itself, and the right answer where there is one."""

    prompt: Turns
    reference: str | None

    @property
    def content(self) -> Any:
        return [role_content_pairs(self.prompt), self.reference]

    def to_json(self) -> dict[str, Any]:
        return {"messages": to_messages(self.prompt), "reference": self.reference}


def make_sample(record: Record, mapping: ColumnMapping, source: int = 0) -> Sample:
    """The sample of a record; RowError where something is missing or of the wrong type."""
    sample = READERS[mapping.format](record.values, mapping)
    return replace(sample, file=record.file, line=record.line, source=source)


def join_turns(prompt: Turns, completion: Turns) -> MessagesSample:
    """A conversation of which only the completion is learnt; RowError where the two do not fit."""
    return MessagesSample(check_conversation([*prompt, *completion]), prompt_turns=len(prompt))


def unpair_preferences(samples: list[Sample]) -> Iterator[Sample]:
    """Every preference as two unpaired ones; other samples as they are."""
    for sample in samples:
        if isinstance(sample, PreferenceSample):
            yield from sample.unpair()
        else:
            yield sample


def _read_messages(values: Values, mapping: ColumnMapping) -> Sample:
    assert mapping.messages
    return MessagesSample(
        check_conversation(parse_messages(require_column(values, mapping.messages)))
    )


def _read_prompt_completion(values: Values, mapping: ColumnMapping) -> Sample:
    assert mapping.completion
    name = mapping.completion
    answer = require_text(require_column(values, name), name)
    turns = [
        *read_system_turn(values, mapping.system),
        Turn("user", read_instruction(values, mapping)),
        Turn("assistant", require_nonblank(answer, f"the column {name!r}")),
    ]
    return MessagesSample(tuple(turns))


def _read_text(values: Values, mapping: ColumnMapping) -> Sample:
    assert mapping.text
    text = require_text(require_column(values, mapping.text), mapping.text)
    return TextSample(require_nonblank(text, f"the column {mapping.text!r}"))


def _read_preference(values: Values, mapping: ColumnMapping) -> Sample:
    assert mapping.chosen
    assert mapping.rejected
    names = (mapping.chosen, mapping.rejected)
    chosen, rejected = (
        read_turns(require_column(values, name), name, "assistant") for name in names
    )
    if chosen == rejected:
        raise RowError(
            "EqualAnswers",
            f"the columns {names[0]!r} and {names[1]!r} hold the same answer",
            "Remove the row: there is nothing to prefer.",
        )
    system = read_system_turn(values, mapping.system)
    if chosen[0].role == "assistant" == rejected[0].role:
        prompt = read_prompt(values, mapping, system)
    else:
        prompt = _find_common_prompt(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        prompt = prompt if prompt[0].role == "system" else (*system, *prompt)
    sample = PreferenceSample(
        prompt, check_completion(chosen, names[0]), check_completion(rejected, names[1])
    )
    join_turns(prompt, sample.chosen)
    return sample


def _find_common_prompt(chosen: Turns, rejected: Turns) -> Turns:
    """The turns that both conversations begin with."""
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    # Where one conversation continues after the other has ended, the last answer differs.
    while count and (count in (len(chosen), len(rejected)) or chosen[count - 1].role != "user"):
        count -= 1
    if not count:
        raise RowError(
            "BadConversation",
            "the two conversations do not begin with the same turns",
            "Give both answers the same prompt, or put it into a column of its own.",
        )
    return chosen[:count]


def _read_unpaired_preference(values: Values, mapping: ColumnMapping) -> Sample:
    assert mapping.label
    is_desirable = _parse_label(require_column(values, mapping.label), mapping.label)
    if mapping.messages:
        turns = check_conversation(parse_messages(require_column(values, mapping.messages)))
        return UnpairedPreferenceSample(turns[:-1], turns[-1:], is_desirable)
    assert mapping.completion
    value = require_column(values, mapping.completion)
    completion = check_completion(
        read_turns(value, mapping.completion, "assistant"), mapping.completion
    )
    prompt = read_prompt(values, mapping, read_system_turn(values, mapping.system))
    return UnpairedPreferenceSample(prompt, completion, is_desirable)


def _parse_label(value: Any, name: str) -> bool:
    if not isinstance(value, str) and value in (0, 1):
        return bool(value)
    labels = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}
    label = labels.get(str(value).strip().lower())
    if label is None:
        raise RowError(
            "WrongType",
            f"the column {name!r} is {str(value)[:40]!r}, and not true or false",
            "Write true where the answer is desirable, and false where it is not.",
        )
    return label


def _read_prompt_only(values: Values, mapping: ColumnMapping) -> Sample:
    system = read_system_turn(values, mapping.system)
    reference = _read_reference(values.get(mapping.reference)) if mapping.reference else None
    if not mapping.messages:
        return PromptOnlySample(read_prompt(values, mapping, system), reference)
    turns = parse_messages(require_column(values, mapping.messages))
    if turns and turns[-1].role == "assistant":
        # Conversations made for SFT end with the right answer.
        reference = turns[-1].content if reference is None else reference
        turns = turns[:-1]
    return PromptOnlySample(check_prompt(tuple(turns), system), reference)


def _read_reference(value: Any) -> str | None:
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    # Numbers are usual: the answers of sums.
    return None if value is None else require_text(str(value), "reference")


READERS: Mapping[Format, Callable[[Values, ColumnMapping], Sample]] = {
    "chat": _read_messages,
    "instruction": _read_prompt_completion,
    "completion": _read_text,
    "preference": _read_preference,
    "unpaired": _read_unpaired_preference,
    "prompt": _read_prompt_only,
}


def role_content_pairs(turns: Sequence[Turn]) -> list[list[str]]:
    """Roles and texts, from which the key of a sample is made."""
    return [[turn.role, turn.content] for turn in turns]
