"""The part of a rendered conversation that the model writes: its end, and what it must hold.

A server renders the messages before an answer, with the beginning of the answer, and takes what the
model writes up to the token that ends the turn. Training learns exactly that text. Everything here
works on texts, before they are tokenised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from finetune_trainer.data.turns import Turn

_THOUGHT = re.compile(r"\A\s*(?:<think>)?(.*?)</think>(.*)\Z", re.DOTALL)
_LEADING_THOUGHT = re.compile(r"\A\s*(?:<think>.*?)?</think>", re.DOTALL)
_OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
_EMPTY_THOUGHT = re.compile(
    r"(?:(?:<think>\s*)?</think>"
    r"|<\|channel>thought\s*<channel\|>"
    r"|<\|START_THINKING\|>\s*<\|END_THINKING\|>)\s*\Z"
)
"""The end of a prompt that allows no thought; Gemma's and Cohere's have tokens of their own."""
_SWITCH = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")
"""A word of a prompt that turns thinking on or off."""


@dataclass(frozen=True)
class TurnEnds:
    """The tokens that a template can write at the end of an answer, as texts."""

    end_of_turn: Sequence[str]
    """The tokens after which a server stops, the most likely one first."""
    special_tokens: frozenset[str]
    """Every token added to the plain vocabulary; some models have thousands."""
    lengths: tuple[int, ...]
    """Their lengths in characters, the longest first."""

    @classmethod
    def of(cls, end_of_turn: Sequence[str], special_tokens: Iterable[str]) -> TurnEnds:
        """The ends with `special_tokens`, none of which is empty."""
        tokens = frozenset(special_tokens)
        lengths = sorted({len(token) for token in tokens}, reverse=True)
        return cls(end_of_turn, tokens, tuple(lengths))

    def cut(self, text: str) -> str:
        """The answer that ends `text`, without what the template writes after the end of the turn.

        Phi-3 writes the end of the document after the last turn, most templates a line feed, and
        some the opening of the next answer.
        """
        # A text that has such a token is refused, so nothing after the last one is the answer's.
        found = [text.rfind(token) + len(token) for token in self.end_of_turn if token in text]
        text = text[: max(found, default=len(text))]
        start = self._start_of_ending(text)
        ending = text[start:]
        for token in self.end_of_turn:
            if (at := ending.find(token)) >= 0:
                return text[: start + at + len(token)]
        # White space after an answer that no token ends is the template's, too.
        return text.rstrip()

    def ends_turn(self, text: str) -> bool:
        """Whether `text` holds special tokens and white space only."""
        return self._start_of_ending(text) == 0

    def _start_of_ending(self, text: str) -> int:
        """Where the special tokens and the white space begin that `text` ends with."""
        end = len(text)
        while end:
            rest = text[:end].rstrip()
            tails = (rest[-length:] for length in self.lengths)
            token = next((tail for tail in tails if tail in self.special_tokens), "")
            rest = rest.removesuffix(token)
            if len(rest) == end:
                break
            end = len(rest)
        return end


def split_thought(content: str) -> tuple[str, str]:
    """The thought of an answer, without its tags, and what a reader sees; both may be empty."""
    found = _THOUGHT.match(content)
    return (found[1].strip(), found[2].lstrip("\n")) if found else ("", content)


def has_thought(turn: Turn) -> bool:
    """Whether the turn has a thought, in its text or apart from it."""
    return bool((turn.reasoning or "").strip() or split_thought(turn.content)[0])


def allows_no_thought(prompt: str) -> bool:
    """Whether a rendered prompt begins the answer with an empty thought."""
    return bool(_EMPTY_THOUGHT.search(prompt))


def complete_answer(prompt: str, rendered: str, turn: Turn, ends: TurnEnds) -> str | None:
    """The answer after `prompt`, for a template that drops its thought or begins one in the prompt.

    `rendered` is the template's text of the conversation with the answer; what it writes after
    the thought is kept. An answer without a thought gets an empty one where the prompt opens it,
    and none where the prompt has an empty one. None where the template has another reason to
    write the prompt differently, or writes a header of its own before the answer.
    """
    thought, visible = split_thought(turn.content)
    thought = (turn.reasoning or "").strip() or thought
    opened, closed = _OPENED_THOUGHT.search(prompt), _EMPTY_THOUGHT.search(prompt)
    begun = opened or closed
    before = prompt[: begun.start()] if begun else prompt
    if not rendered.startswith(before) or (closed and thought):
        return None
    rest = rendered[len(before) :].lstrip()
    if opened and not thought and rest.startswith("</think>"):
        return ends.cut(rest)
    # A template that does not split a thought off the text writes it after an empty one.
    for _ in range(2):
        rest = _LEADING_THOUGHT.sub("", rest, count=1)
    rest = ends.cut(rest.lstrip())
    if closed:
        return rest
    if opened:
        return f"{thought}\n</think>\n\n{rest}"
    is_dropped = thought and rest.startswith(visible.strip())
    return f"<think>\n{thought}\n</think>\n\n{rest}" if is_dropped else None


def find_missing_part(answer: str, turn: Turn) -> str | None:
    """The part of a turn that the rendered answer lacks, such as "the thought"; None without one.

    White space is not compared, because many templates strip it.
    """
    thought, visible = split_thought(turn.content)
    first, closed, _ = answer.partition("</think>")
    # A template that reads reasoning_content only writes an empty thought before one in the text.
    if _squash(thought) not in _squash(first if closed else answer):
        return "the thought"
    if _squash(turn.reasoning or "") not in _squash(answer):
        return "the reasoning"
    if _squash(visible) not in _squash(answer):
        return "the text"
    return next((f"the tool call {name}" for name in _call_names(turn) if name not in answer), None)


def find_unwritten_text(
    text: str, turns: Sequence[Turn], reads_switches: bool = False
) -> str | None:
    """The first text or call of which the rendered `text` lacks a part, such as "the text of turn
    2"; None without one.

    Thoughts of the assistant may be dropped, and the switches /think and /no_think of prompts by a
    template that reads them. White space is not compared, because many templates strip it, and a
    text may be quoted as JSON.
    """
    squashed = _squash(text)
    for number, turn in enumerate(turns, 1):
        if any(name not in text for name in _call_names(turn)):
            return f"the calls of turn {number}"
        forms = [split_thought(turn.content)[1] if turn.role == "assistant" else turn.content]
        if reads_switches and turn.role != "assistant":
            forms.append(_SWITCH.sub("", turn.content))
        quoted = [json.dumps(form, ensure_ascii=False)[1:-1] for form in forms]
        if not any(_squash(form) in squashed for form in (*forms, *quoted)):
            part = "tool's result in" if turn.role == "tool" else "text of"
            return f"the {part} turn {number}"
    return None


def _call_names(turn: Turn) -> Iterator[str]:
    return (call["function"]["name"] for call in turn.tool_calls)


def _squash(text: str) -> str:
    return "".join(text.split())
