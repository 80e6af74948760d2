"""Turns, tools and documents as the arguments of a chat template.

Templates agree on role and content only. They read reasoning under different keys, take the
arguments of a call as an object or as JSON text, and need the content of a turn that calls tools to
be empty or null. A form settles these choices; `rendering` takes the first one with which the
template writes every part of the conversation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.data.tool_calls import Json
from finetune_trainer.data.turns import REASONING_KEYS, Turn, Turns


@dataclass(frozen=True)
class ChatContext:
    """Tools and documents of one row."""

    tools: tuple[Json, ...] = ()
    """Descriptions of tools, as finetune_trainer.data.tool_calls writes them."""
    documents: tuple[Json, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The arguments of apply_chat_template, without empty ones."""
        found = {"tools": list(self.tools), "documents": list(self.documents)}
        return {name: value for name, value in found.items() if value}


NO_CONTEXT = ChatContext()


@dataclass(frozen=True)
class MessageForm:
    """One way to write turns as messages."""

    reasoning_key: str = "reasoning_content"
    arguments_as_text: bool = False
    """Whether the arguments of calls are JSON text."""
    null_content: bool = False
    """Whether a turn that only calls tools has null as its content."""


PLAIN_FORM = MessageForm()
"""The form of the OpenAI API's answers, with arguments as objects."""


REASONING_FORMS = tuple(MessageForm(key) for key in REASONING_KEYS)
"""A form for each key under which templates read reasoning."""


def forms_with(reasoning_key: str) -> list[MessageForm]:
    """The forms that a template may take, in the order in which to try them."""
    return [
        MessageForm(reasoning_key, as_text, null)
        for as_text, null in itertools.product((False, True), (False, True))
    ]


def to_messages(turns: Sequence[Turn], form: MessageForm = PLAIN_FORM) -> list[dict[str, Any]]:
    """The turns as chat templates take them."""
    return [_to_message(turn, form) for turn in turns]


def from_messages(messages: Sequence[Mapping[str, Any]]) -> Turns:
    """The turns of messages in the plain form, as prepare writes them into eval.jsonl."""
    return tuple(
        Turn(
            message["role"],
            message["content"],
            reasoning=message.get(PLAIN_FORM.reasoning_key),
            tool_calls=tuple(message.get("tool_calls", ())),
            name=message.get("name"),
            tool_call_id=message.get("tool_call_id"),
        )
        for message in messages
    )


def _to_message(turn: Turn, form: MessageForm) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.is_plain:
        return message
    if turn.reasoning is not None:
        message[form.reasoning_key] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [_to_call(call, form) for call in turn.tool_calls]
        if form.null_content and not turn.content:
            message["content"] = None
    if turn.name is not None:
        message["name"] = turn.name
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _to_call(call: Json, form: MessageForm) -> Json:
    if not form.arguments_as_text:
        return call
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


@dataclass(frozen=True)
class MarkedChat:
    """A conversation whose parts end with marks that occur nowhere else.

    The name of a tool may be in its description, in a call and in a text: only a mark in the
    rendered text shows that the template writes this part of the conversation.
    """

    turns: Turns
    context: ChatContext
    marks: dict[str, str]
    """What each mark stands for, in words."""

    def find_unwritten(self, text: str) -> str | None:
        """What the rendered `text` of the marked conversation lacks, in words."""
        return next((what for mark, what in self.marks.items() if mark not in text), None)


def mark_chat(turns: Sequence[Turn], context: ChatContext) -> MarkedChat:
    """Mark texts, calls with their arguments, results of tools, names, tools and documents."""
    marks: dict[str, str] = {}

    def mark(text: str, what: str) -> str:
        marks[f"_q{len(marks)}z"] = what
        return f"{text.rstrip()}{next(reversed(marks))}"

    def mark_call(call: Json, number: int) -> Json:
        name = mark(call["function"]["name"], f"the calls of turn {number}")
        what = f"the arguments of calls of turn {number}"
        arguments = {
            mark(str(key), what): mark(value, what) if isinstance(value, str) else value
            for key, value in call["function"]["arguments"].items()
        }
        return {**call, "function": {"name": name, "arguments": arguments}}

    def mark_turn(turn: Turn, number: int) -> Turn:
        changed: dict[str, Any] = {}
        if turn.tool_calls:
            changed["tool_calls"] = tuple(mark_call(call, number) for call in turn.tool_calls)
        if turn.role == "tool":
            changed["content"] = mark(turn.content, f"the tool's result in turn {number}")
        elif turn.content.strip():
            changed["content"] = mark(turn.content, f"the text of turn {number}")
        if turn.role != "tool" and turn.name is not None:
            changed["name"] = mark(turn.name, f"the name of turn {number}")
        return replace(turn, **changed)

    def mark_tool(tool: Json) -> Json:
        name = tool["function"]["name"]
        marked_name = mark(name, f"the tool {name}")
        function = {**tool["function"], "name": marked_name}
        description = function.get("description")
        if isinstance(description, str) and description.strip():
            function["description"] = mark(description, f"the description of the tool {name}")
        parameters = function.get("parameters")
        parameters = parameters if isinstance(parameters, dict) else {}
        properties = parameters.get("properties")
        if isinstance(properties, dict):
            marked = {
                mark(str(key), f"the parameter {key} of the tool {name}"): value
                for key, value in properties.items()
            }
            function["parameters"] = {**parameters, "properties": marked}
        return {**tool, "function": function}

    def mark_document(document: Json, number: int) -> Json:
        return {
            key: mark_texts(value, f"the {key} of document {number}")
            for key, value in document.items()
        }

    def mark_texts(value: Any, what: str) -> Any:
        match value:
            case str():
                return mark(value, what)
            case list():
                return [mark_texts(each, what) for each in value]
            case dict():
                return {key: mark_texts(each, what) for key, each in value.items()}
        return value

    marked = tuple(mark_turn(turn, number) for number, turn in enumerate(turns, 1))
    marked_context = ChatContext(
        tuple(mark_tool(tool) for tool in context.tools),
        tuple(mark_document(each, number) for number, each in enumerate(context.documents, 1)),
    )
    return MarkedChat(marked, marked_context, marks)


def writes_python(text: str, turns: Sequence[Turn]) -> bool:
    """Whether a template wrote the arguments of a call as a Python dict, because it adds them to a
    text."""
    every = (call["function"]["arguments"] for turn in turns for call in turn.tool_calls)
    return any(arguments and str(arguments) in text for arguments in every)
