"""Conversations as the text that a chat template makes of them; RowError where it cannot.

What a conversation has beside roles and contents (tools, calls, reasoning, documents, names) must
be in the text, so the first form of the messages in which the template writes it is taken. Where a
template leaves reasoning out but knows its end, </think>, `answer_text` completes the last answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from finetune_trainer.data.chat_context import NO_CONTEXT, ChatContext
from finetune_trainer.data.message_forms import (
    PLAIN_FORM,
    REASONING_FORMS,
    MessageForm,
    forms_with,
    mark_chat,
    to_messages,
    writes_python,
)
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.template_rendering import find_marks, render_template
from finetune_trainer.data.turns import Turn

_PROBE = (Turn("user", "Hi"), Turn("assistant", "Hello", reasoning="_q0z"))


@dataclass(frozen=True)
class Chat:
    """A conversation that a template can write, and the form in which it does."""

    tokenizer: Any
    context: ChatContext
    form: MessageForm

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """The template's text of these turns; RowError where the template refuses them."""
        messages = to_messages(turns, self.form)
        return render_template(self.tokenizer, messages, self.context, add_generation_prompt)

    def find_marks(self, turns: Sequence[Turn]) -> list[tuple[int, int]] | None:
        """Which characters {% generation %} marks hold; None without marks."""
        return find_marks(self.tokenizer, to_messages(turns, self.form), self.context)


class ChatRenderer:
    """Finds the forms that the chat template of a tokenizer takes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def open(self, turns: Sequence[Turn], context: ChatContext = NO_CONTEXT) -> Chat:
        """The conversation in a form in which the template writes all of it.

        Raises RowError where there is none. Thoughts of the assistant are not checked here: many
        templates drop them once the conversation continues.
        """
        plain = Chat(self._tokenizer, context, PLAIN_FORM)
        is_plain = all(turn.is_plain and turn.role != "tool" for turn in turns)
        if is_plain and context == NO_CONTEXT:
            return plain
        refusals: list[RowError] = []
        losses: list[RowError] = []
        for form in forms_with(self._find_reasoning_key(turns)):
            chat = replace(plain, form=form)
            try:
                unwritten = _find_unwritten(chat, turns)
            except RowError as error:
                refusals.append(error)
                continue
            if unwritten is None:
                return chat
            losses.append(_unwritten_error(unwritten))
        raise (*losses, *refusals)[0]

    def _find_reasoning_key(self, turns: Sequence[Turn]) -> str:
        """The key under which the template reads reasoning; RowError where it reads none."""
        number = next((number for number, turn in enumerate(turns, 1) if turn.reasoning), None)
        if number is not None and self._reasoning_key is None and not self._knows_thoughts:
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
    def _knows_thoughts(self) -> bool:
        return "</think>" in str(self._tokenizer.chat_template)


def _find_unwritten(chat: Chat, turns: Sequence[Turn]) -> str | None:
    if writes_python(chat.render(turns), turns):
        return "the arguments of calls as JSON"
    marked = mark_chat(turns, chat.context)
    return marked.find_unwritten(replace(chat, context=marked.context).render(marked.turns))


def _unwritten_error(what: str) -> RowError:
    return RowError(
        "ChatTemplateUnsupported",
        f"the model's chat template leaves out {what}",
        "Use a model whose template writes it, give model.tokenizer.chatTemplate, or remove it "
        "from the rows.",
    )
