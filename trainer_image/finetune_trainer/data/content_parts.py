"""Chat templates that read the content of a message as a list of parts.

Those of some models that take images, such as LLaVA's, write a text only where it is a part. The
conversations here have texts as their contents, so they are converted for such a template, as
inference servers do. The template itself is exported unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

_TEXT = "the text 1234"
Messages = Sequence[Mapping[str, Any]]


def convert_contents(tokenizer: Any) -> None:
    """Let `tokenizer.apply_chat_template` take texts whichever contents its template reads."""
    render = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = functools.partial(_render, tokenizer, render)


def to_template_messages(template: str, messages: Messages) -> Messages:
    """The messages with the contents that a chat template reads."""
    return _with_parts(messages) if _reads_parts(template) else messages


def _render(tokenizer: Any, render: Any, conversation: Messages, **options: Any) -> Any:
    template = tokenizer.get_chat_template(options.get("chat_template"), options.get("tools"))
    return render(to_template_messages(template, conversation), **options)


def _with_parts(messages: Messages) -> list[dict[str, Any]]:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else {**message}
        for message in messages
    ]


@functools.lru_cache(maxsize=8)
def _reads_parts(template: str) -> bool:
    """Whether a template writes the text of a question only where it is a part."""
    question = [{"role": "user", "content": _TEXT}]
    return not _writes_text(template, question) and _writes_text(template, _with_parts(question))


def _writes_text(template: str, messages: Messages) -> bool:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            conversations=[messages], chat_template=template, bos_token="", eos_token=""
        )
    except Exception:
        return False
    return _TEXT in str(text) and f"'{_TEXT}'" not in str(text)
