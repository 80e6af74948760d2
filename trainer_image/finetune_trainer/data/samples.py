"""Samples: one row each, in the form that its objective learns from.

The kinds are TRL's: messages (which prompt and completion become too), text, preference, unpaired
preference and prompt only. A sample is what stays on one side of the split, what the mixture draws,
and what is counted as a row. Its key is a digest of its content and not of its place, so equal
samples are recognised wherever they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from finetune_api.dataset import Format

from finetune_trainer.data.columns import ColumnMapping, two_columns
from finetune_trainer.data.file_formats import Record
from finetune_trainer.data.message_forms import NO_CONTEXT, PLAIN_FORM, ChatContext, to_messages
from finetune_trainer.data.messages import (
    add_system_turn,
    check_completion,
    check_conversation,
    check_prompt,
    read_history,
    read_instruction,
    read_system_turn,
    read_turns,
    with_reasoning,
)
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.tool_calls import (
    is_empty,
    parse_json_text,
    read_documents,
    read_tools,
)
from finetune_trainer.data.turns import (
    Turn,
    Turns,
    looks_like_turns,
    parse_turns,
    refuse_python,
    require_nonblank,
    require_text,
)

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


@dataclass(frozen=True, kw_only=True)
class ChatSample(Sample):
    """A row whose turns go through the chat template."""

    context: ChatContext = NO_CONTEXT

    def _make_content(self, parts: list[Any]) -> list[Any]:
        context = self.context.to_json()
        return [*parts, context] if context else parts


@dataclass(frozen=True)
class MessagesSample(ChatSample):
    """A conversation that ends with the assistant's turn."""

    turns: Turns
    prompt_turns: int = 0
    """Turns at the beginning that are not learnt, not even the assistant's."""

    @property
    def content(self) -> Any:
        return self._make_content(turn_records(self.turns))

    def to_json(self) -> dict[str, Any]:
        messages = to_messages(self.turns[:-1], PLAIN_FORM)
        return {
            "messages": messages,
            "reference": self.turns[-1].content,
            **self.context.to_json(),
        }


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
class PreferenceSample(ChatSample):
    """A prompt, the better answer and the worse one."""

    prompt: Turns
    chosen: Turns
    rejected: Turns

    @property
    def content(self) -> Any:
        parts = (self.prompt, self.chosen, self.rejected)
        return self._make_content([turn_records(turns) for turns in parts])

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": to_messages(self.prompt, PLAIN_FORM),
            "chosen": self.chosen[-1].content,
            "rejected": self.rejected[-1].content,
            **self.context.to_json(),
        }

    def unpair(self) -> tuple[UnpairedPreferenceSample, UnpairedPreferenceSample]:
        """The better answer as a desirable one, the worse answer as an undesirable one."""
        make = partial(
            UnpairedPreferenceSample,
            self.prompt,
            file=self.file,
            line=self.line,
            source=self.source,
            context=self.context,
        )
        return make(self.chosen, True), make(self.rejected, False)


@dataclass(frozen=True)
class UnpairedPreferenceSample(ChatSample):
    """A prompt and an answer that is desirable or not."""

    prompt: Turns
    completion: Turns
    is_desirable: bool

    @property
    def content(self) -> Any:
        parts = [turn_records(turns) for turns in (self.prompt, self.completion)]
        return self._make_content([*parts, self.is_desirable])

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": to_messages(self.prompt, PLAIN_FORM),
            "completion": self.completion[-1].content,
            "label": self.is_desirable,
            **self.context.to_json(),
        }


@dataclass(frozen=True)
class PromptOnlySample(ChatSample):
    """A prompt that the model answers itself, and the right answer where there is one."""

    prompt: Turns
    reference: str | None

    @property
    def content(self) -> Any:
        return self._make_content([turn_records(self.prompt), self.reference])

    def to_json(self) -> dict[str, Any]:
        messages = to_messages(self.prompt, PLAIN_FORM)
        return {"messages": messages, "reference": self.reference, **self.context.to_json()}


def make_sample(record: Record, mapping: ColumnMapping, source: int = 0) -> Sample:
    """The sample of a record; RowError where something is missing or of the wrong type."""
    sample = READERS[mapping.format](record.values, mapping)
    place: dict[str, Any] = {"file": record.file, "line": record.line, "source": source}
    if isinstance(sample, ChatSample):
        place["context"] = _read_context(record.values, mapping)
    return replace(sample, **place)


def join_turns(
    prompt: Turns, completion: Turns, context: ChatContext = NO_CONTEXT
) -> MessagesSample:
    """A conversation of which only the completion is learnt; RowError where the two do not fit."""
    return MessagesSample(
        check_conversation([*prompt, *completion]),
        prompt_turns=len(prompt),
        context=context,
    )


def unpair_preferences(samples: list[Sample]) -> Iterator[Sample]:
    """Every preference as two unpaired ones; other samples as they are."""
    for sample in samples:
        if isinstance(sample, PreferenceSample):
            yield from sample.unpair()
        else:
            yield sample


def turn_records(turns: Sequence[Turn]) -> list[list[Any]]:
    """Roles, texts and what else the turns have, from which the key of a sample is made."""
    return [_turn_record(turn) for turn in turns]


def _turn_record(turn: Turn) -> list[Any]:
    if turn.is_plain:
        return [turn.role, turn.content]
    rest = (turn.reasoning, turn.tool_calls, turn.name, turn.tool_call_id, turn.is_learnt)
    return [turn.role, turn.content, *rest]


def _read_context(values: Values, mapping: ColumnMapping) -> ChatContext:
    name, tools = mapping.find(values, "tools")
    documents_name, documents = mapping.find(values, "documents")
    if tools is None is documents:
        return NO_CONTEXT
    return ChatContext(read_tools(tools, name), read_documents(documents, documents_name))


def _read_system(values: Values, mapping: ColumnMapping) -> Turns:
    name, value = mapping.find(values, "system")
    return read_system_turn(value, name)


def _read_conversation(values: Values, mapping: ColumnMapping) -> Turns:
    _, value = mapping.require(values, "messages")
    return add_system_turn(parse_turns(value), _read_system(values, mapping))


def _read_messages(values: Values, mapping: ColumnMapping) -> Sample:
    return MessagesSample(check_conversation(_read_conversation(values, mapping)))


def _read_prompt_completion(values: Values, mapping: ColumnMapping) -> Sample:
    name, answer = mapping.require(values, "completion")
    prompt_name, prompt = mapping.require(values, "prompt")
    if any(_holds_turns(value) for value in (prompt, answer)):
        _refuse_next_to_turns(values, mapping, "history", "reasoning")
        completion = check_completion(read_turns(answer, name, "assistant"), name)
        return join_turns(_read_prompt(values, mapping), completion)
    history_name, history = mapping.find(values, "history")
    text = require_nonblank(require_text(answer, name), f"the column {name!r}")
    thought = _read_reasoning(*mapping.find(values, "reasoning"))
    turns = [
        *_read_system(values, mapping),
        *read_history(history, history_name),
        Turn("user", read_instruction(prompt, prompt_name, mapping.find(values, "input")[1])),
        with_reasoning(Turn("assistant", text), thought),
    ]
    return MessagesSample(tuple(turns))


def _read_reasoning(name: str, value: Any) -> str | None:
    thought = None if value is None else require_text(value, name)
    if str(thought).strip().lower() in ("on", "off"):
        raise RowError(
            "UnusableColumn",
            f"the column {name!r} is a switch and no reasoning",
            "Name it in dataset.ignoreColumns to train without it.",
        )
    return thought


def _refuse_next_to_turns(values: Values, mapping: ColumnMapping, *roles: str) -> None:
    """RowError where a column that belongs to texts is not empty, and prompt or answer have
    turns."""
    for role in roles:
        name, value = mapping.find(values, role)
        if not is_empty(parse_json_text(value)):
            raise RowError(
                "UnusableColumn",
                f"the column {name!r} cannot be added to turns of prompt or answer",
                f"Write it into the turns, or name {name!r} in dataset.ignoreColumns.",
            )


def _holds_turns(value: Any) -> bool:
    refuse_python(value)
    parsed = parse_json_text(value)
    return isinstance(parsed, dict | list) and bool(parsed) and looks_like_turns(parsed)


def _read_text(values: Values, mapping: ColumnMapping) -> Sample:
    name, value = mapping.require(values, "text")
    return TextSample(require_nonblank(require_text(value, name), f"the column {name!r}"))


def _read_prompt(values: Values, mapping: ColumnMapping) -> Turns:
    """The turns before the answer: from a text, or a conversation that ends with the user."""
    found = [mapping.find(values, role) for role in ("prompt", "messages")]
    name, value = next((each for each in found if each[1] is not None), ("", None))
    other, conversation = found[1]
    if other != name and not is_empty(conversation):
        begin = _without_system(read_turns(value, name, "user"))
        if _without_system(read_turns(conversation, other, "user"))[: len(begin)] != begin:
            raise two_columns(name, other, "prompt")
    if value is None:
        raise RowError(
            "MissingColumn",
            "the answers begin with the assistant, and there is no column for the prompt",
            "Add a column prompt, or begin both conversations with the user's turn.",
        )
    extra = mapping.find(values, "input")[1]
    if extra is not None and _holds_turns(value):
        _refuse_next_to_turns(values, mapping, "input")
    elif extra is not None:
        value = read_instruction(value, name, extra)
    return check_prompt(read_turns(value, name, "user"), _read_system(values, mapping))


def _read_preference(values: Values, mapping: ColumnMapping) -> Sample:
    (name, better), (other, worse) = (
        mapping.require(values, role) for role in ("chosen", "rejected")
    )
    chosen, rejected = read_turns(better, name, "assistant"), read_turns(worse, other, "assistant")
    if turn_records(chosen) == turn_records(rejected):
        raise RowError(
            "EqualAnswers",
            f"the columns {name!r} and {other!r} hold the same answer",
            "Remove the row: there is nothing to prefer.",
        )
    if chosen[0].role == "assistant" == rejected[0].role:
        prompt = _read_prompt(values, mapping)
    else:
        prompt = _find_common_prompt(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        prompt = _add_prompt_column(
            check_prompt(prompt, _read_system(values, mapping)), values, mapping
        )
    sample = PreferenceSample(
        prompt, check_completion(chosen, name), check_completion(rejected, other)
    )
    join_turns(prompt, sample.chosen)
    join_turns(prompt, sample.rejected)
    return sample


def _add_prompt_column(common: Turns, values: Values, mapping: ColumnMapping) -> Turns:
    """The common prompt of two conversations, with the system turn of a prompt column; RowError
    where that column holds another prompt."""
    for role in ("prompt", "messages"):
        name, value = mapping.find(values, role)
        if is_empty(value):
            continue
        given = read_turns(value, name, "user")
        system, begin = [turn for turn in given if turn.role == "system"], _without_system(given)
        questions = [turn.content.strip() for turn in common if turn.role == "user"]
        is_text = len(given) == 1 and given[0].content.strip() in (questions[0], questions[-1])
        if not is_text and begin[: len(_without_system(common))] != _without_system(common):
            raise RowError(
                "BadConversation",
                f"the column {name!r} differs from the beginning of the two conversations",
                "Make them equal, or name the column in dataset.ignoreColumns.",
            )
        common = add_system_turn(common, tuple(system))
    return common


def _without_system(turns: Turns) -> list[list[Any]]:
    return turn_records([turn for turn in turns if turn.role != "system"])


def _find_common_prompt(chosen: Turns, rejected: Turns) -> Turns:
    """The turns that both conversations begin with."""
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    # Where one conversation continues after the other has ended, the last answer differs.
    while count and (
        count in (len(chosen), len(rejected)) or chosen[count - 1].role not in ("user", "tool")
    ):
        count -= 1
    if not count:
        raise RowError(
            "BadConversation",
            "the two conversations do not begin with the same turns",
            "Give both answers the same prompt, or put it into a column of its own.",
        )
    return chosen[:count]


def _read_unpaired_preference(values: Values, mapping: ColumnMapping) -> Sample:
    is_desirable = _parse_label(*mapping.require(values, "label"))
    if mapping.has("messages"):
        turns = _read_conversation(values, mapping)
        check_conversation(turns)
        # The label is that of the last answer.
        completion = check_completion(turns[-1:], mapping.names["messages"][0])
        return UnpairedPreferenceSample(turns[:-1], completion, is_desirable)
    name, value = mapping.require(values, "completion")
    completion = check_completion(read_turns(value, name, "assistant"), name)
    return UnpairedPreferenceSample(_read_prompt(values, mapping), completion, is_desirable)


def _parse_label(name: str, value: Any) -> bool:
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
    reference = _read_reference(mapping.find(values, "reference")[1])
    if not mapping.has("messages"):
        mapping.require(values, "prompt")
        return PromptOnlySample(_read_prompt(values, mapping), reference)
    turns = parse_turns(mapping.require(values, "messages")[1])
    if turns and turns[-1].role == "assistant":
        # Conversations made for SFT end with the right answer.
        reference = turns[-1].content if reference is None and turns[-1].is_learnt else reference
        turns = turns[:-1]
    return PromptOnlySample(check_prompt(turns, _read_system(values, mapping)), reference)


def _read_reference(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else require_text(value, "reference")
    try:
        if isinstance(value, bool | list | dict):
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            return require_text(text, "reference")
        # Answers of arithmetic are often numbers.
        if isinstance(value, int | float | Decimal) and math.isfinite(value):
            # pandas makes whole numbers with a gap among them floats: 72.0 is 72.
            is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
            return str(int(value) if is_whole else value)
    except (TypeError, ValueError):
        pass  # It holds a date, bytes or NaN.
    raise RowError(
        "WrongType",
        f"the reference {str(value)[:40]!r} cannot be written as text",
        "Write it as text, as a number, or as JSON.",
    )


READERS: Mapping[Format, Callable[[Values, ColumnMapping], Sample]] = {
    "chat": _read_messages,
    "instruction": _read_prompt_completion,
    "completion": _read_text,
    "preference": _read_preference,
    "unpaired": _read_unpaired_preference,
    "prompt": _read_prompt_only,
}
