"""Rows as the objectives see them: a conversation, a text, a pair, a rated answer, a question.

A unit is what stands on one side of the split, is drawn by the mixture, and is counted as a row.
Its key is a digest of what it says and not of where it stands, so equal rows are known wherever
they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from finetune_api.dataset import Format

from finetune_trainer.data.columns import ColumnMapping
from finetune_trainer.data.messages import (
    MessagesSample,
    Sample,
    Turn,
    Turns,
    answer_turns,
    chat_turns,
    checked,
    checked_prompt,
    column,
    conversation_of,
    dicts,
    filled,
    instruction_prompt,
    plain,
    prompt_turns,
    system_turn,
    text_of,
    turns_or_text,
)
from finetune_trainer.data.row_errors import RowError

Values = Mapping[str, Any]
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class TextSample(Sample):
    """A document of continued pre-training."""

    text: str

    @property
    def content(self) -> Any:
        """What it says."""
        return self.text

    def shown(self) -> dict[str, Any]:
        """Where it stands: a document is too long to be repeated."""
        return {"file": self.file, "line": self.line}


@dataclass(frozen=True)
class PreferenceSample(Sample):
    """A prompt, the better answer and the worse one."""

    prompt: Turns
    chosen: Turns
    rejected: Turns

    @property
    def content(self) -> Any:
        """What it says."""
        return [plain(turns) for turns in (self.prompt, self.chosen, self.rejected)]

    def shown(self) -> dict[str, Any]:
        """The prompt and both answers."""
        return {
            "messages": dicts(self.prompt),
            "chosen": _said(self.chosen),
            "rejected": _said(self.rejected),
        }

    def rated(self) -> tuple[UnpairedPreferenceSample, UnpairedPreferenceSample]:
        """The better answer as desirable, the worse one as not."""
        rate = partial(
            UnpairedPreferenceSample,
            self.prompt,
            file=self.file,
            line=self.line,
            source=self.source,
        )
        return rate(self.chosen, True), rate(self.rejected, False)


@dataclass(frozen=True)
class UnpairedPreferenceSample(Sample):
    """A prompt and an answer that is desirable or not."""

    prompt: Turns
    answer: Turns
    desirable: bool

    @property
    def content(self) -> Any:
        """What it says."""
        return [plain(self.prompt), plain(self.answer), self.desirable]

    def shown(self) -> dict[str, Any]:
        """The prompt, the answer and the verdict."""
        return {
            "messages": dicts(self.prompt),
            "completion": _said(self.answer),
            "label": self.desirable,
        }


@dataclass(frozen=True)
class PromptOnlySample(Sample):
    """A prompt that the model answers itself, and the right answer where there is one."""

    prompt: Turns
    reference: str | None

    @property
    def content(self) -> Any:
        """What it says."""
        return [plain(self.prompt), self.reference]

    def shown(self) -> dict[str, Any]:
        """The prompt and the reference."""
        return {"messages": dicts(self.prompt), "reference": self.reference}


def to_unit(values: Values, layout: ColumnMapping, file: str, line: int, source: int = 0) -> Sample:
    """One record; BadRow where something is missing or of the wrong kind."""
    unit = READERS[layout.format](values, layout)
    return replace(unit, file=file, line=line, source=source)


def _chat(values: Values, layout: ColumnMapping) -> Sample:
    assert layout.messages
    return MessagesSample(checked(chat_turns(column(values, layout.messages))))


def _instruction(values: Values, layout: ColumnMapping) -> Sample:
    assert layout.completion
    answer = text_of(column(values, layout.completion), layout.completion)
    turns = [
        *system_turn(values, layout.system),
        Turn("user", instruction_prompt(values, layout)),
        Turn("assistant", filled(answer, f"the column {layout.completion!r}")),
    ]
    return MessagesSample(tuple(turns))


def _completion(values: Values, layout: ColumnMapping) -> Sample:
    assert layout.text
    text = text_of(column(values, layout.text), layout.text)
    return TextSample(filled(text, f"the column {layout.text!r}"))


def _preference(values: Values, layout: ColumnMapping) -> Sample:
    assert layout.chosen
    assert layout.rejected
    names = (layout.chosen, layout.rejected)
    chosen, rejected = (turns_or_text(column(values, name), name, "assistant") for name in names)
    if chosen == rejected:
        raise RowError(
            "EqualAnswers",
            f"the columns {names[0]!r} and {names[1]!r} hold the same answer",
            "Remove the row: there is nothing to prefer.",
        )
    system = system_turn(values, layout.system)
    if chosen[0].role == "assistant" == rejected[0].role:
        prompt = prompt_turns(values, layout, system)
    else:
        prompt = _common(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        prompt = prompt if prompt[0].role == "system" else (*system, *prompt)
    pair = PreferenceSample(
        prompt, answer_turns(chosen, names[0]), answer_turns(rejected, names[1])
    )
    conversation_of(prompt, pair.chosen)
    return pair


def _common(chosen: Turns, rejected: Turns) -> Turns:
    """The turns that both conversations begin with: their prompt."""
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    # Where one conversation goes on after the other has ended, the last answer is the difference.
    while count and (count in (len(chosen), len(rejected)) or chosen[count - 1].role != "user"):
        count -= 1
    if not count:
        raise RowError(
            "BadConversation",
            "the two conversations do not begin with the same turns",
            "Give both answers the same prompt, or put it into a column of its own.",
        )
    return chosen[:count]


def _unpaired(values: Values, layout: ColumnMapping) -> Sample:
    assert layout.label
    desirable = _verdict(column(values, layout.label), layout.label)
    if layout.messages:
        turns = checked(chat_turns(column(values, layout.messages)))
        return UnpairedPreferenceSample(turns[:-1], turns[-1:], desirable)
    assert layout.completion
    value = column(values, layout.completion)
    answer = answer_turns(turns_or_text(value, layout.completion, "assistant"), layout.completion)
    prompt = prompt_turns(values, layout, system_turn(values, layout.system))
    return UnpairedPreferenceSample(prompt, answer, desirable)


def _verdict(value: Any, name: str) -> bool:
    if not isinstance(value, str) and value in (0, 1):
        return bool(value)
    known = {**dict.fromkeys(_YES, True), **dict.fromkeys(_NO, False)}
    verdict = known.get(str(value).strip().lower())
    if verdict is None:
        raise RowError(
            "WrongType",
            f"the column {name!r} is {str(value)[:40]!r}, and not true or false",
            "Write true where the answer is desirable, and false where it is not.",
        )
    return verdict


def _prompt(values: Values, layout: ColumnMapping) -> Sample:
    system = system_turn(values, layout.system)
    reference = _reference(values.get(layout.reference)) if layout.reference else None
    if not layout.messages:
        return PromptOnlySample(prompt_turns(values, layout, system), reference)
    turns = chat_turns(column(values, layout.messages))
    if turns and turns[-1].role == "assistant":
        # Chats made for SFT have the right answer at their end.
        reference = turns[-1].content if reference is None else reference
        turns = turns[:-1]
    return PromptOnlySample(checked_prompt(tuple(turns), system), reference)


def _reference(value: Any) -> str | None:
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    # Numbers are usual: the answers of sums.
    return None if value is None else text_of(str(value), "reference")


READERS: Mapping[Format, Callable[[Values, ColumnMapping], Sample]] = {
    "chat": _chat,
    "instruction": _instruction,
    "completion": _completion,
    "preference": _preference,
    "unpaired": _unpaired,
    "prompt": _prompt,
}


def as_rated(units: list[Sample]) -> Iterator[Sample]:
    """Pairs as two rated answers each; everything else as it is."""
    for unit in units:
        if isinstance(unit, PreferenceSample):
            yield from unit.rated()
        else:
            yield unit


def _said(turns: Turns) -> str:
    return turns[-1].content
