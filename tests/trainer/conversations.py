"""Conversations tokenised under a chat template, and what is learnt of them."""

from __future__ import annotations

from typing import Any

from finetune_trainer.data.chat_template import ChatTokenizer, ConversationTokens
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.turns import Turn

END = "<|im_end|>"
LONG = 512
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
    "{{ m.content | trim }}{{ eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
)


def chat_tokenizer(tokenizer: Any, template: str, max_length: int = LONG) -> ChatTokenizer:
    tokenizer.chat_template = template
    return ChatTokenizer(tokenizer, max_length, 512)


def conversation(*contents: str, system: str | None = None) -> MessagesSample:
    roles = ("user", "assistant")
    turns = [Turn(roles[i % 2], content) for i, content in enumerate(contents)]
    first = [Turn("system", system)] if system else []
    return MessagesSample((*first, *turns), file="f", line=1)


def one(found: list[ConversationTokens | RowError]) -> ConversationTokens:
    assert isinstance(found[0], ConversationTokens), vars(found[0])
    return found[0]


def learnt(tokenizer: Any, tokens: ConversationTokens) -> list[str]:
    """The learnt texts, one per answer."""
    texts: list[list[int]] = []
    before = False
    for token, label in zip(tokens.tokenized.tokens, tokens.tokenized.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            texts += [] if before else [[]]
            texts[-1].append(int(token))
        before = label != IGNORED
    return [tokenizer.decode(text) for text in texts]


def row_error(found: list[ConversationTokens | RowError]) -> RowError:
    assert isinstance(found[0], RowError)
    return found[0]
