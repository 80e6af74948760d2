"""From samples to tokens, one method for every kind of sample.

Conversations go through the chat template. A text keeps all its tokens: what is longer than a
sequence continues in the next one, which begins with the last token of the one before, so that
every token but the first is predicted exactly once. The two answers of a preference share the
tokens of their prompt. Of a prompt-only sample only the prompt is tokenized; training samples the
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from finetune_api.dataset import LongRows

from finetune_trainer.data.chat_template import ChatTokenizer, ConversationTokens
from finetune_trainer.data.row_errors import LongRowError, RowError
from finetune_trainer.data.samples import (
    MessagesSample,
    PreferenceSample,
    PromptOnlySample,
    Sample,
    TextSample,
    UnpairedPreferenceSample,
    join_turns,
)
from finetune_trainer.data.token_store import IGNORED, Int32, TokenizedSample


@dataclass(frozen=True)
class SampleTokens:
    """A sample with its tokens."""

    sample: Sample
    tokenized: tuple[TokenizedSample, ...]
    """One; of a preference the chosen and the rejected answer; of a text as many as it fills."""
    full_length: int
    """Tokens of the longest one before truncation."""
    is_truncated: bool = False
    is_partly_learnt: bool = False
    """Whether an answer of the conversation is context only; see ConversationTokens."""
    answer: str | None = None
    """The last answer as the model generates it, where its turn has more than a content."""


class SampleTokenizer:
    """Tokenizes samples of any kind."""

    def __init__(
        self, tokenizer: Any, chat: ChatTokenizer, max_length: int, max_new_tokens: int = 0
    ) -> None:
        """`max_length` is maxSequenceLength, of which a sampled answer takes `max_new_tokens`."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._max_length = max_length
        self._max_new_tokens = max_new_tokens

    def tokenize(self, samples: Sequence[Sample]) -> list[SampleTokens | RowError]:
        """The tokens of each sample, or why it cannot be used; all are of one kind."""
        match samples[0]:
            case TextSample():
                return self._tokenize_texts([s for s in samples if isinstance(s, TextSample)])
            case PromptOnlySample():
                return [
                    self._tokenize_prompt(s) for s in samples if isinstance(s, PromptOnlySample)
                ]
            case PreferenceSample():
                return self._tokenize_preferences(
                    [s for s in samples if isinstance(s, PreferenceSample)]
                )
            case _:
                return self._tokenize_conversations(samples)

    def _tokenize_conversations(self, samples: Sequence[Sample]) -> list[SampleTokens | RowError]:
        conversations = [_as_conversation(sample) for sample in samples]
        return [
            each
            if isinstance(each, RowError)
            else SampleTokens(
                sample,
                (each.tokenized,),
                each.full_length,
                each.is_truncated,
                each.is_partly_learnt,
                each.answer,
            )
            for sample, each in zip(samples, self._chat.tokenize(conversations), strict=True)
        ]

    def _tokenize_preferences(
        self, samples: Sequence[PreferenceSample]
    ) -> list[SampleTokens | RowError]:
        conversations = [
            join_turns(sample.prompt, answer, sample.context)
            for sample in samples
            for answer in (sample.chosen, sample.rejected)
        ]
        tokens = self._chat.tokenize(conversations)
        return [
            _join_preference(*each) for each in zip(samples, tokens[::2], tokens[1::2], strict=True)
        ]

    def _tokenize_texts(self, samples: Sequence[TextSample]) -> list[SampleTokens | RowError]:
        tokens = self._tokenizer([sample.text for sample in samples])["input_ids"]
        return [self._split_text(sample, ids) for sample, ids in zip(samples, tokens, strict=True)]

    def _split_text(self, sample: TextSample, ids: list[int]) -> SampleTokens:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if bos is not None and bos != eos and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the text has one of its own
        tokens = np.asarray(ids if ids[-1:] == [eos] else [*ids, eos], dtype=np.int32)
        starts = range(0, max(1, len(tokens) - 1), self._max_length - 1)
        parts = [tokens[start : start + self._max_length] for start in starts]
        tokenized = tuple(TokenizedSample(part, _labels_after_first(part)) for part in parts)
        return SampleTokens(sample, tokenized, len(tokens))

    def _tokenize_prompt(self, sample: PromptOnlySample) -> SampleTokens | RowError:
        try:
            ids = self._chat.tokenize_prompt(sample.prompt, sample.context)
        except RowError as error:
            return error
        available = self._max_length - self._max_new_tokens
        if len(ids) > available:
            return LongRowError(
                "PromptTooLong",
                f"the prompt has {len(ids)} tokens, and an answer of {self._max_new_tokens} leaves "
                f"{available} of {self._max_length}",
                "Raise training.maxSequenceLength, lower grpo.maxNewTokens, or set "
                "dataset.longRows to Skip.",
            )
        tokens = np.asarray(ids, dtype=np.int32)
        tokenized = TokenizedSample(tokens, np.full_like(tokens, IGNORED))
        return SampleTokens(sample, (tokenized,), len(ids))


def apply_long_rows(tokens: SampleTokens, rule: LongRows) -> SampleTokens | LongRowError:
    """The sample complete or cut by dataset.longRows; an error where it is left out or refused."""
    is_long = tokens.is_truncated or len(tokens.tokenized) > 1
    if not is_long or (isinstance(tokens.sample, PreferenceSample) and not tokens.is_truncated):
        return tokens
    if rule in ("Split", "Truncate"):
        is_cut = rule == "Truncate" and isinstance(tokens.sample, TextSample)
        first = tokens.tokenized[:1]
        return replace(tokens, tokenized=first, is_truncated=True) if is_cut else tokens
    length = max(len(each.tokens) for each in tokens.tokenized)
    return LongRowError(
        "RowTooLong",
        f"it has {tokens.full_length} tokens, and a sequence {length}",
        "Raise training.maxSequenceLength, or set dataset.longRows to Truncate or Skip.",
    )


def _as_conversation(sample: Sample) -> MessagesSample:
    if isinstance(sample, UnpairedPreferenceSample):
        return join_turns(sample.prompt, sample.completion, sample.context)
    assert isinstance(sample, MessagesSample)
    return sample


def _join_preference(
    sample: PreferenceSample,
    chosen: ConversationTokens | RowError,
    rejected: ConversationTokens | RowError,
) -> SampleTokens | RowError:
    if isinstance(chosen, RowError):
        return chosen
    if isinstance(rejected, RowError):
        return rejected
    tokenized = (chosen.tokenized, rejected.tokenized)
    prompts = [_tokens_before_answer(each) for each in tokenized]
    if not np.array_equal(*prompts):
        return RowError(
            "ChatTemplateUnsupported",
            "the chat template writes the prompt differently before the two answers",
            "Remove the row, or give model.tokenizer.chatTemplate.",
        )
    if np.array_equal(*(np.asarray(each.tokens) for each in tokenized)):
        is_truncated = chosen.is_truncated or rejected.is_truncated
        return (LongRowError if is_truncated else RowError)(
            "EqualAnswers",
            f"both answers are the same in the first {len(tokenized[0].tokens)} tokens",
            "Raise training.maxSequenceLength, or remove the row.",
        )
    longest = max(chosen.full_length, rejected.full_length)
    return SampleTokens(
        sample,
        tokenized,
        longest,
        chosen.is_truncated or rejected.is_truncated,
        chosen.is_partly_learnt or rejected.is_partly_learnt,
    )


def _tokens_before_answer(tokenized: TokenizedSample) -> Int32:
    learnt = np.flatnonzero(np.asarray(tokenized.labels) != IGNORED)
    return np.asarray(tokenized.tokens)[: learnt[0]]


def _labels_after_first(tokens: Int32) -> Int32:
    labels = tokens.copy()
    labels[0] = IGNORED
    return labels
