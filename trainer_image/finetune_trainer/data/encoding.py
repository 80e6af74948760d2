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

from finetune_trainer.data.bad_rows import BadRow
from finetune_trainer.data.chat import ChatEncoder, Encoded
from finetune_trainer.data.conversation import Conversation, Unit, conversation_of
from finetune_trainer.data.store import IGNORED, Example
from finetune_trainer.data.units import Pair, Question, Rated, Text


@dataclass(frozen=True)
class Coded:
    """A unit as tokens."""

    unit: Unit
    examples: tuple[Example, ...]
    """One; of a pair the chosen and the rejected one; of a text as many as it needs."""
    full_length: int
    """Tokens of the longest example before cutting."""
    truncated: bool = False


class UnitEncoder:
    """Turns units of any format into tokens."""

    def __init__(self, tokenizer: Any, chat: ChatEncoder, longest: int, answer: int = 0) -> None:
        """`longest` is maxSequenceLength, of which a sampled answer takes up to `answer`."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._longest = longest
        self._answer = answer

    def encode(self, units: Sequence[Unit]) -> list[Coded | BadRow]:
        """Each unit as tokens, or why it cannot be used; all are of one kind."""
        match units[0]:
            case Text():
                return self._texts([unit for unit in units if isinstance(unit, Text)])
            case Question():
                return [self._question(unit) for unit in units if isinstance(unit, Question)]
            case Pair():
                return self._pairs([unit for unit in units if isinstance(unit, Pair)])
            case _:
                return self._conversations(units)

    def _conversations(self, units: Sequence[Unit]) -> list[Coded | BadRow]:
        rows = [_conversation(unit) for unit in units]
        return [
            each
            if isinstance(each, BadRow)
            else Coded(unit, (each.example,), each.full_length, each.truncated)
            for unit, each in zip(units, self._chat.encode(rows), strict=True)
        ]

    def _pairs(self, pairs: Sequence[Pair]) -> list[Coded | BadRow]:
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

    def _texts(self, units: Sequence[Text]) -> list[Coded | BadRow]:
        tokenized = self._tokenizer([unit.text for unit in units])["input_ids"]
        return [self._text(unit, ids) for unit, ids in zip(units, tokenized, strict=True)]

    def _text(self, unit: Text, ids: list[int]) -> Coded:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if bos is not None and bos != eos and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the text brought its own
        whole = np.asarray(ids if ids[-1:] == [eos] else [*ids, eos], dtype=np.int32)
        step = self._longest - 1
        starts = range(0, max(1, len(whole) - 1), step)
        parts = [whole[start : start + self._longest] for start in starts]
        return Coded(unit, tuple(Example(part, _behind_first(part)) for part in parts), len(whole))

    def _question(self, unit: Question) -> Coded | BadRow:
        try:
            ids = self._chat.prompt_tokens(unit.prompt)
        except BadRow as error:
            return error
        room = self._longest - self._answer
        if len(ids) > room:
            return BadRow(
                "PromptTooLong",
                f"the prompt has {len(ids)} tokens, and {room} of {self._longest} are left beside "
                f"an answer of {self._answer}",
                "Raise training.maxSequenceLength, lower grpo.maxNewTokens, or shorten the prompt.",
            )
        tokens = np.asarray(ids, dtype=np.int32)
        return Coded(unit, (Example(tokens, np.full_like(tokens, IGNORED)),), len(ids))


def _conversation(unit: Unit) -> Conversation:
    if isinstance(unit, Rated):
        return conversation_of(unit.prompt, unit.answer)
    assert isinstance(unit, Conversation)
    return unit


def _pair(pair: Pair, chosen: Encoded | BadRow, rejected: Encoded | BadRow) -> Coded | BadRow:
    if isinstance(chosen, BadRow):
        return chosen
    if isinstance(rejected, BadRow):
        return rejected
    examples = (chosen.example, rejected.example)
    prompts = [_before_answer(example) for example in examples]
    if not np.array_equal(*prompts):
        return BadRow(
            "ChatTemplateUnsupported",
            "the chat template writes the prompt differently before the two answers",
            "Remove the row, or put {% generation %} marks into the template.",
        )
    if np.array_equal(*(np.asarray(example.tokens) for example in examples)):
        return BadRow(
            "EqualAnswers",
            f"both answers are the same in the first {len(examples[0].tokens)} tokens",
            "Raise training.maxSequenceLength, or remove the row.",
        )
    longest = max(chosen.full_length, rejected.full_length)
    return Coded(pair, examples, longest, chosen.truncated or rejected.truncated)


def _before_answer(example: Example) -> Any:
    learnt = np.flatnonzero(np.asarray(example.labels) != IGNORED)
    return np.asarray(example.tokens)[: learnt[0]]


def _behind_first(tokens: Any) -> Any:
    labels = tokens.copy()
    labels[0] = IGNORED
    return labels
