"""Conversations as the text that a chat template makes of them; RowError where it cannot.

What a conversation has beside roles and contents (tools, calls, reasoning, documents, names) must
be in the text, so the first form of the messages in which the template writes all of it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_trainer.data.chat_context import NO_CONTEXT, ChatContext
from finetune_trainer.data.message_forms import (
    PLAIN_FORM,
    MessageForm,
    forms_for,
    mark_chat,
    to_messages,
    writes_python,
)
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.turns import Turn


class ChatRenderer:
    """Renders conversations with the chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def render(
        self,
        turns: Sequence[Turn],
        context: ChatContext = NO_CONTEXT,
        form: MessageForm = PLAIN_FORM,
        add_generation_prompt: bool = False,
    ) -> str:
        """The template's text; RowError where the template refuses the conversation."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    to_messages(turns, form),
                    **context.to_json(),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except Exception as error:  # a template can raise whatever its code does
            raise RowError(
                "BadConversation",
                f"the model's chat template refuses it: {error}",
                "Follow the template: usually user and assistant take turns, and some models "
                "know no system turn.",
            ) from None

    def choose_form(self, turns: Sequence[Turn], context: ChatContext = NO_CONTEXT) -> MessageForm:
        """The first form in which the template writes everything; RowError where there is none."""
        if all(turn.is_plain for turn in turns) and context == NO_CONTEXT:
            return PLAIN_FORM
        refusals: list[RowError] = []
        losses: list[RowError] = []
        for form in forms_for(str(self._tokenizer.chat_template)):
            try:
                unwritten = self._find_unwritten(turns, context, form)
            except RowError as error:
                refusals.append(error)
                continue
            if unwritten is None:
                return form
            losses.append(_unwritten_error(unwritten))
        raise (*losses, *refusals)[0]

    def _find_unwritten(
        self, turns: Sequence[Turn], context: ChatContext, form: MessageForm
    ) -> str | None:
        if writes_python(self.render(turns, context, form), turns):
            return "the arguments of calls as JSON"
        marked = mark_chat(turns, context)
        return marked.find_unwritten(self.render(marked.turns, marked.context, form))


def _unwritten_error(what: str) -> RowError:
    return RowError(
        "ChatTemplateUnsupported",
        f"the model's chat template leaves out {what}",
        "Use a model whose template writes it, give model.tokenizer.chatTemplate, or remove it "
        "from the rows.",
    )
