"""Conversations as the text that a chat template makes of them; RowError where it cannot.

Every part of a conversation (texts, tools, calls, results, documents, names) must be in the text,
so the first form of the messages in which the template writes all of them is taken. Where a
template leaves reasoning out but has its end, </think>, `answer_text` completes the last answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from finetune_trainer.data.answer_text import find_unwritten_text
from finetune_trainer.data.content_parts import to_template_messages
from finetune_trainer.data.message_forms import (
    NO_CONTEXT,
    PLAIN_FORM,
    REASONING_FORMS,
    ChatContext,
    MessageForm,
    forms_with,
    mark_chat,
    to_messages,
    writes_python,
)
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.tokenizer import bound_arguments, describe_error, has_generation_marks
from finetune_trainer.data.turns import Turn

_PROBE = (Turn("user", "Hi"), Turn("assistant", "Hello", reasoning="_q0z"))


@dataclass(frozen=True)
class Chat:
    """A conversation's template, its tools and documents, and the form of its messages."""

    tokenizer: Any
    context: ChatContext
    form: MessageForm

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """The template's text of these turns.

        A template is a program of the model's author: whatever it raises is a RowError.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    to_messages(turns, self.form),
                    **self.context.to_json(),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except Exception as error:
            raise RowError(
                "BadConversation",
                f"the model's chat template refuses it: {describe_error(error)}",
                "Follow the template: usually user and assistant take turns, and some templates "
                "have no system turn.",
            ) from None

    def find_generation_spans(self, turns: Sequence[Turn]) -> list[tuple[int, int]] | None:
        """The characters that the template marks with {% generation %}; None without marks.

        The template has rendered `turns` without an error.
        """
        template = self.tokenizer.get_chat_template(tools=list(self.context.tools) or None)
        if not has_generation_marks(template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        # apply_chat_template has them for tokens only, where a border within a token is lost.
        arguments = {**self.tokenizer.special_tokens_map, **bound_arguments(self.tokenizer)}
        messages = to_messages(turns, self.form)
        _, (marks,) = render_jinja_template(
            conversations=[to_template_messages(template, messages)],
            **self.context.to_json(),
            chat_template=template,
            return_assistant_tokens_mask=True,
            **arguments,
        )
        return [(int(start), int(end)) for start, end in marks]


class ChatRenderer:
    """Finds the form in which the chat template of a tokenizer writes a conversation."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def find_chat(self, turns: Sequence[Turn], context: ChatContext = NO_CONTEXT) -> Chat:
        """The chat in a form in which the template writes calls, tools, documents and names.

        Raises RowError where there is none. Thoughts of the assistant are not checked here: many
        templates drop them once the conversation continues. A plain conversation has one form, and
        is not checked.
        """
        if _is_plain(turns, context):
            return Chat(self._tokenizer, context, PLAIN_FORM)
        refusals: list[RowError] = []
        losses: list[RowError] = []
        for form in forms_with(self._find_reasoning_key(turns)):
            chat = Chat(self._tokenizer, context, form)
            try:
                unwritten = _find_unwritten(chat, turns)
            except RowError as error:
                refusals.append(error)
                continue
            if unwritten is None:
                return chat
            losses.append(_unwritten_error(unwritten))
        raise (*losses, *refusals)[0]

    def render_completely(
        self,
        turns: Sequence[Turn],
        context: ChatContext = NO_CONTEXT,
        add_generation_prompt: bool = False,
    ) -> tuple[Chat, str]:
        """The chat of a conversation and its text; RowError where the template leaves out a part of
        the conversation or of one of its texts."""
        chat = self.find_chat(turns, context)
        text = chat.render(turns, add_generation_prompt)
        unwritten = find_unwritten_text(text, turns, self._reads_switches)
        if unwritten is None and _is_plain(turns, context):
            unwritten = _find_dropped_turn(chat, turns, add_generation_prompt)
        if unwritten is not None:
            raise _unwritten_error(unwritten)
        return chat, text

    def _find_reasoning_key(self, turns: Sequence[Turn]) -> str:
        """The key under which the template reads reasoning; RowError where it reads none."""
        number = next((number for number, turn in enumerate(turns, 1) if turn.reasoning), None)
        if number is not None and self._reasoning_key is None and not self._has_thoughts:
            raise _unwritten_error(f"the reasoning of turn {number}")
        return self._reasoning_key or PLAIN_FORM.reasoning_key

    @cached_property
    def _reasoning_key(self) -> str | None:
        for form in REASONING_FORMS:
            try:
                text = Chat(self._tokenizer, NO_CONTEXT, form).render(_PROBE)
            except RowError:
                continue
            if str(_PROBE[-1].reasoning) in text:
                return form.reasoning_key
        return None

    @property
    def _reads_switches(self) -> bool:
        return "/no_think" in str(self._tokenizer.chat_template)

    @property
    def _has_thoughts(self) -> bool:
        return "</think>" in str(self._tokenizer.chat_template)


def _find_unwritten(chat: Chat, turns: Sequence[Turn]) -> str | None:
    if writes_python(chat.render(turns), turns):
        return "the arguments of calls as JSON"
    marked = mark_chat(turns, chat.context)
    return marked.find_unwritten(replace(chat, context=marked.context).render(marked.turns))


def _find_dropped_turn(
    chat: Chat, turns: Sequence[Turn], add_generation_prompt: bool
) -> str | None:
    """The turn of a plain conversation whose text is in the rendered text at another place only."""
    marked = mark_chat(turns, NO_CONTEXT)
    try:
        return marked.find_unwritten(chat.render(marked.turns, add_generation_prompt))
    except RowError:
        # The template requires the exact text of a turn, so it reads the turn.
        return None


def _is_plain(turns: Sequence[Turn], context: ChatContext) -> bool:
    return context == NO_CONTEXT and all(turn.is_plain for turn in turns)


def _unwritten_error(what: str) -> RowError:
    return RowError(
        "ChatTemplateUnsupported",
        f"the model's chat template leaves out {what}",
        "Use a model whose template writes it, give model.tokenizer.chatTemplate, or remove it "
        "from the rows.",
    )
