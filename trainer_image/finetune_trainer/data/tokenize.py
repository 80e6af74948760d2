"""From units to the examples that training reads, one module for every format.

Conversations go through the chat template. A text keeps all its tokens: what is longer than a
sequence goes on in the next one, which begins with the last token of the one before, so that every
token but the first is predicted exactly once. The two answers of a pair share the tokens of their
prompt. Of a question only the prompt is encoded; the answer is sampled later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_trainer.data.chat_template import ChatTokenizer, Encoded
from finetune_trainer.data.messages import MessagesSample, Sample, conversation_of
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.samples import (
    PreferenceSample,
    PromptOnlySample,
    TextSample,
    UnpairedPreferenceSample,
)
from finetune_trainer.data.token_store import IGNORED, TokenizedSample


@dataclass(frozen=True)
class Coded:
    """A unit as tokens."""

    unit: Sample
    examples: tuple[TokenizedSample, ...]
    """One; of a pair the chosen and the rejected one; of a text as many as it needs."""
    full_length: int
    """Tokens of the longest example before cutting."""
    truncated: bool = False


class SampleTokenizer:
    """Turns units of any format into tokens."""

    def __init__(self, tokenizer: Any, chat: ChatTokenizer, longest: int, answer: int = 0) -> None:
        """`longest` is maxSequenceLength, of which a sampled answer takes up to `answer`."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._longest = longest
        self._answer = answer

    def encode(self, units: Sequence[Sample]) -> list[Coded | RowError]:
        """Each unit as tokens, or why it cannot be used; all are of one kind."""
        match units[0]:
            case TextSample():
                return self._texts([unit for unit in units if isinstance(unit, TextSample)])
            case PromptOnlySample():
                return [
                    self._question(unit) for unit in units if isinstance(unit, PromptOnlySample)
                ]
            case PreferenceSample():
                return self._pairs([unit for unit in units if isinstance(unit, PreferenceSample)])
            case _:
                return self._conversations(units)

    def _conversations(self, units: Sequence[Sample]) -> list[Coded | RowError]:
        rows = [_conversation(unit) for unit in units]
        return [
            each
            if isinstance(each, RowError)
            else Coded(unit, (each.example,), each.full_length, each.truncated)
            for unit, each in zip(units, self._chat.encode(rows), strict=True)
        ]

    def _pairs(self, pairs: Sequence[PreferenceSample]) -> list[Coded | RowError]:
        rows = [
            conversation_of(pair.prompt, answer)
            for pair in pairs
            for answer in (pair.chosen, pair.rejected)
        ]
        both = self._chat.encode(rows)
        return [
            _pair(pair, chosen, rejected)
            for pair, chosen, rejected in zip(pairs, both[::2], both[1::2], strict=True)
        ]

    def _texts(self, units: Sequence[TextSample]) -> list[Coded | RowError]:
        tokenized = self._tokenizer([unit.text for unit in units])["input_ids"]
        return [self._text(unit, ids) for unit, ids in zip(units, tokenized, strict=True)]

    def _text(self, unit: TextSample, ids: list[int]) -> Coded:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if bos is not None and bos != eos and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the text brought its own
        whole = np.asarray(ids if ids[-1:] == [eos] else [*ids, eos], dtype=np.int32)
        step = self._longest - 1
        starts = range(0, max(1, len(whole) - 1), step)
        parts = [whole[start : start + self._longest] for start in starts]
        return Coded(
            unit, tuple(TokenizedSample(part, _behind_first(part)) for part in parts), len(whole)
        )

    def _question(self, unit: PromptOnlySample) -> Coded | RowError:
        try:
            ids = self._chat.prompt_tokens(unit.prompt)
        except RowError as error:
            return error
        room = self._longest - self._answer
        if len(ids) > room:
            return RowError(
                "PromptTooLong",
                f"the prompt has {len(ids)} tokens, and {room} of {self._longest} are left beside "
                f"an answer of {self._answer}",
                "Raise training.maxSequenceLength, lower grpo.maxNewTokens, or shorten the prompt.",
            )
        tokens = np.asarray(ids, dtype=np.int32)
        return Coded(unit, (TokenizedSample(tokens, np.full_like(tokens, IGNORED)),), len(ids))


def _conversation(unit: Sample) -> MessagesSample:
    if isinstance(unit, UnpairedPreferenceSample):
        return conversation_of(unit.prompt, unit.answer)
    assert isinstance(unit, MessagesSample)
    return unit


def _pair(
    pair: PreferenceSample, chosen: Encoded | RowError, rejected: Encoded | RowError
) -> Coded | RowError:
    if isinstance(chosen, RowError):
        return chosen
    if isinstance(rejected, RowError):
        return rejected
    examples = (chosen.example, rejected.example)
    prompts = [_before_answer(example) for example in examples]
    if not np.array_equal(*prompts):
        return RowError(
            "ChatTemplateUnsupported",
            "the chat template writes the prompt differently before the two answers",
            "Remove the row, or put {% generation %} marks into the template.",
        )
    if np.array_equal(*(np.asarray(example.tokens) for example in examples)):
        return RowError(
            "EqualAnswers",
            f"both answers are the same in the first {len(examples[0].tokens)} tokens",
            "Raise training.maxSequenceLength, or remove the row.",
        )
    longest = max(chosen.full_length, rejected.full_length)
    return Coded(pair, examples, longest, chosen.truncated or rejected.truncated)


def _before_answer(example: TokenizedSample) -> Any:
    learnt = np.flatnonzero(np.asarray(example.labels) != IGNORED)
    return np.asarray(example.tokens)[: learnt[0]]


def _behind_first(tokens: Any) -> Any:
    labels = tokens.copy()
    labels[0] = IGNORED
    return labels
