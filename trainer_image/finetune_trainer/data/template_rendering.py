"""Rendering a tokenizer's chat template, and the parts that it marks as the assistant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.data.chat_context import NO_CONTEXT, ChatContext
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.template_source import has_marks
from finetune_trainer.data.tokenizer import bound_arguments


def render_template(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    context: ChatContext = NO_CONTEXT,
    add_generation_prompt: bool = False,
) -> str:
    """The template's text of a conversation.

    A template is a program of the model's author: whatever it raises is a RowError.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                **context.to_json(),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )
    except Exception as error:
        raise RowError(
            "BadConversation",
            f"the model's chat template refuses it: {describe_error(error)}",
            "Follow the template: usually user and assistant take turns, and some models "
            "know no system turn.",
        ) from None


def find_marks(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], context: ChatContext = NO_CONTEXT
) -> list[tuple[int, int]] | None:
    """Which characters of the template's text {% generation %} marks hold; None without marks.

    The template has rendered `messages` without an error.
    """
    template = tokenizer.get_chat_template(tools=list(context.tools) or None)
    if not has_marks(template):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    # apply_chat_template has them for tokens only, where a border within a token is lost.
    arguments = {**tokenizer.special_tokens_map, **bound_arguments(tokenizer)}
    _, (marks,) = render_jinja_template(
        conversations=[list(messages)],
        **context.to_json(),
        chat_template=template,
        return_assistant_tokens_mask=True,
        **arguments,
    )
    return [(int(start), int(end)) for start, end in marks]


def describe_error(error: Exception) -> str:
    """The first line of a template's error, with its kind where the template did not raise it."""
    from jinja2 import TemplateError

    text = str(error).strip().split("\n")[0][:300]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}"
