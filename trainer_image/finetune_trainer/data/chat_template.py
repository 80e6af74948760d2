"""From conversations to tokens and labels, through the model's own chat template.

Only what a served model writes is learnt: each of the assistant's turns up to and including the
token that ends the turn. The part is what the rendered text gains by the turn, and a comparison
of tokens verifies that the text before it is tokenised the same way on its own, because that is all
that a served model has before its answer. Where the template marks parts ({% generation %}),
nothing outside the marks is learnt but the token that ends the turn.

Some templates write an earlier answer differently from the last one: without its thought (Qwen3),
or with another end (gpt-oss). Such an answer is context, because the model never writes it like
that. A template that drops the thought of the last answer too, or opens a thought in the prompt
(DeepSeek-R1), is completed: the answer is learnt as the model would write it after the prompt.

Special tokens come from the template only, so there is no second BOS; nothing is padded here, so a
pad token that equals EOS hides nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from finetune_trainer.data.answer_text import (
    TurnEnds,
    allows_no_thought,
    complete_answer,
    find_missing_part,
    has_thought,
)
from finetune_trainer.data.message_forms import NO_CONTEXT, PLAIN_FORM, ChatContext
from finetune_trainer.data.rendering import Chat, ChatRenderer
from finetune_trainer.data.row_errors import LongRowError, RowError
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.token_store import IGNORED, TokenizedSample
from finetune_trainer.data.tokenizer import decode_tokens, find_end_of_turn, special_token_ids
from finetune_trainer.data.turns import Turn

_PROBE = (Turn("user", "Hi"), Turn("assistant", "Hello"))
Ids = list[int]
Span = tuple[int, int]
"""Half-open range, of tokens or of characters."""


@dataclass(frozen=True)
class ConversationTokens:
    """The tokens of one conversation, truncated to the longest sequence."""

    tokenized: TokenizedSample
    full_length: int
    """Tokens before truncation."""
    prompt_length: int
    """Tokens before the last answer."""
    is_truncated: bool
    is_partly_learnt: bool = False
    """Whether an answer is context only, because the template writes it in another way once the
    conversation continues."""
    answer: str | None = None
    """Text of the last answer, where its turn has more than a content."""


@dataclass(frozen=True)
class _RenderedConversation:
    text: str
    prompt_end: int
    """Where the last answer begins, in characters."""
    learnt: list[Span]
    """What is learnt, in characters, in ascending order."""
    context_only: list[Span]
    """Answers whose turns have weight 0."""
    is_partly_learnt: bool
    last: Turn


class ChatTokenizer:
    """Tokenizes conversations with a job's tokenizer, template and longest sequence."""

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        context_length: int,
        learn_prompts: bool = False,
        keep_tail: bool = False,
        stop_ids: Sequence[int] = (),
    ) -> None:
        """`max_length` is the job's maxSequenceLength in tokens, `context_length` the model's.

        With `learn_prompts` the prompts are learnt too (sft.lossOn All). With `keep_tail` a
        conversation keeps what the template writes after its last turn: a reward model gives its
        score there to any caller that renders the template. `stop_ids` are the tokens at which
        servers end an answer, by the model's generation settings.
        """
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._context_length = context_length
        self._learn_prompts = learn_prompts
        self._keep_tail = keep_tail
        self._stop_tokens = [tokenizer.convert_ids_to_tokens(each) for each in stop_ids]
        self._renderer = ChatRenderer(tokenizer)
        self._special_ids = special_token_ids(tokenizer)
        end_of_turn = (find_end_of_turn(tokenizer), tokenizer.eos_token_id)
        # A token such as </tool_call> closes a part of an answer; a server goes on after it.
        self._end_ids = {
            token
            for token in self._special_ids
            if not tokenizer.convert_ids_to_tokens(token).startswith("</") or token in end_of_turn
        }
        self._ends = TurnEnds.of(
            tuple(tokenizer.convert_ids_to_tokens(list(dict.fromkeys(end_of_turn)))),
            tokenizer.convert_ids_to_tokens(sorted(self._special_ids)),
        )

    def tokenize(
        self, conversations: Sequence[MessagesSample]
    ) -> list[ConversationTokens | RowError]:
        """The tokens of each conversation, or why it cannot be used; in the same order."""
        rendered = [_catch_row_error(self._render_with_answers, each) for each in conversations]
        ids = self._tokenize_texts(
            [
                each.text[:end]
                for each in rendered
                if not isinstance(each, RowError)
                for end in _borders(each)
            ]
        )
        return [
            each
            if isinstance(each, RowError)
            else _catch_row_error(self._tokenize_rendered, each, ids)
            for each in rendered
        ]

    def tokenize_prompt(self, turns: Sequence[Turn], context: ChatContext = NO_CONTEXT) -> Ids:
        """The prompt that a server gives the model: the turns and the beginning of the answer.

        Raises RowError where the template cannot render them, or leaves a part of them out.
        """
        self._check_contents(turns, context)
        _, text = self._renderer.render_completely(turns, context, add_generation_prompt=True)
        return self._tokenize_texts([text])[text]

    def _tokenize_texts(self, texts: list[str]) -> dict[str, Ids]:
        distinct = list(dict.fromkeys(text for text in texts if text))
        if not distinct:
            return {"": []}
        ids = self._tokenizer(distinct, add_special_tokens=False)["input_ids"]
        return {"": [], **dict(zip(distinct, ids, strict=True))}

    def _render_with_answers(self, conversation: MessagesSample) -> _RenderedConversation:
        """The text of a conversation, and the places of the answers that a server lets the model
        write like that.

        Raises RowError where the template cannot render it, leaves a part of it out, or does not
        write the last answer after the prompt that a server renders.
        """
        turns = conversation.turns
        self._check_contents(turns, conversation.context)
        chat, rendered = self._renderer.render_completely(turns, conversation.context)
        prompt = chat.render(turns[:-1], add_generation_prompt=True)
        text = prompt + self._answer_after(prompt, rendered, turns[-1])
        has_question, omitted = False, 0
        answers: list[Span] = []
        context_only: list[Span] = []
        for index, turn in enumerate(turns[:-1]):
            if turn.role == "assistant" and index >= conversation.prompt_turns:
                earlier = turns[: index + 1]
                span = self._find_earlier_answer(chat, text, earlier) if has_question else None
                if span:
                    (answers if turn.is_learnt else context_only).append(span)
                elif turn.is_learnt:
                    omitted += 1
                elif self._learn_prompts:
                    raise _unsupported(
                        f"turn {index + 1} has weight 0, which sft.lossOn All cannot leave out, "
                        "because the template writes it differently in a longer conversation"
                    )
            has_question = has_question or turn.role == "user"
        answers.append((len(prompt), len(text)))
        # Of an answer that is completed the marks hold other characters.
        marks = chat.find_generation_spans(turns) if rendered.startswith(text) else None
        if marks is not None:
            answers = [part for span in answers for part in self._marked_parts(span, marks, text)]
            if not answers or answers[-1][1] <= len(prompt):
                raise _unsupported("its {% generation %} marks are not around the last answer")
        # The template's text after the turn, where a reward model may give its score.
        tail = rendered[len(text) :] if rendered.startswith(text) else ""
        return _RenderedConversation(
            text + tail,
            len(prompt),
            answers,
            context_only,
            omitted > 0,
            turns[-1],
        )

    def _check_contents(self, turns: Sequence[Turn], context: ChatContext) -> None:
        """Raise RowError where a text has a token that begins or ends a turn, where an answer has
        one at which servers stop, or where a turn that is not the assistant's has weight 0 and
        prompts are learnt."""
        for name, entries in context.to_json().items():
            text = json.dumps(entries, ensure_ascii=False)
            if token := next((each for each in self._control_tokens if each in text), None):
                raise RowError(
                    "BadConversation",
                    f"the {name} have {token}, a token with which the chat template begins or ends "
                    "a turn",
                    "Remove it from the text.",
                )
        for number, turn in enumerate(turns, 1):
            stop_tokens = self._stop_tokens if turn.role == "assistant" else ()
            texts = [turn.content, turn.reasoning or "", turn.name or ""]
            if turn.tool_calls:
                texts.append(json.dumps(turn.tool_calls, ensure_ascii=False))
            for token in (*self._control_tokens, *stop_tokens):
                if any(token in text for text in texts):
                    effect = (
                        "a token with which the chat template begins or ends a turn"
                        if token in self._control_tokens
                        else "at which a server would end the answer (eos_token_id of the model's "
                        "generation settings)"
                    )
                    raise RowError(
                        "BadConversation",
                        f"the text of turn {number} has {token}, {effect}",
                        "Remove it from the text.",
                    )
            if self._learn_prompts and not turn.is_learnt and turn.role != "assistant":
                raise RowError(
                    "BadConversation",
                    f"turn {number} of the {turn.role} has weight 0, and sft.lossOn All learns it",
                    "Leave sft.lossOn out, or remove the weight.",
                )

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        """The special tokens that the template writes around turns, and those that end an
        answer."""
        chat = Chat(self._tokenizer, NO_CONTEXT, PLAIN_FORM)
        # A header can be in one of the two only.
        texts = (
            _catch_row_error(chat.render, _PROBE),
            _catch_row_error(chat.render, _PROBE[:1], True),
        )
        text = "".join(each for each in texts if isinstance(each, str))
        written = (token for token in self._ends.special_tokens if token in text)
        # Some prompts open a thought, and the thoughts of rows may be in their texts.
        structure = (token for token in written if "think" not in token.lower())
        return tuple(dict.fromkeys((*structure, *self._ends.end_of_turn)))

    def _answer_after(self, prompt: str, rendered: str, turn: Turn) -> str:
        """The last answer, as the model writes it after `prompt`."""
        if has_thought(turn) and allows_no_thought(prompt):
            raise _unsupported(
                "the prompt ends with an empty thought, but the last answer has a thought"
            )
        if rendered.startswith(prompt):
            answer = self._ends.cut(rendered[len(prompt) :])
            missing = find_missing_part(answer, turn)
            if missing is None:
                return answer
        else:
            missing = None
        completed = complete_answer(prompt, rendered, turn, self._ends)
        if completed is not None and find_missing_part(completed, turn) is None:
            return completed
        if missing:
            raise _unsupported(f"it leaves out {missing} of the last answer")
        raise _unsupported("the prompt is written differently once its answer follows")

    def _find_earlier_answer(self, chat: Chat, text: str, turns: Sequence[Turn]) -> Span | None:
        """Where `text` has the answer that ends `turns`, written as if it were the last one."""
        before = chat.render(turns[:-1], add_generation_prompt=True)
        if not text.startswith(before):
            return None
        try:
            answer = self._answer_after(before, chat.render(turns), turns[-1])
        except RowError:
            return None
        end = len(before) + len(answer)
        return (len(before), end) if text.startswith(answer, len(before)) else None

    def _marked_parts(self, span: Span, marks: Sequence[Span], text: str) -> list[Span]:
        """The marked parts of an answer; the token that ends it is learnt with the last one."""
        start, end = span
        parts = [(max(start, a), min(end, b)) for a, b in marks if a < end and b > start]
        if parts and self._ends.ends_turn(text[parts[-1][1] : end]):
            parts[-1] = (parts[-1][0], end)
        return parts

    def _tokenize_rendered(
        self, rendered: _RenderedConversation, ids: dict[str, Ids]
    ) -> ConversationTokens | RowError:
        borders = _borders(rendered)
        prefixes = [ids[rendered.text[:end]] for end in borders]
        full = prefixes[-1]
        if any(full[: len(prefix)] != prefix for prefix in prefixes):
            full, ends = self._tokenize_in_parts(rendered.text, borders)
        else:
            ends = [len(prefix) for prefix in prefixes]
        tokens = dict(zip(borders, ends, strict=True))
        learnt, context_only = (
            [(tokens[start], tokens[end]) for start, end in spans]
            for spans in (rendered.learnt, rendered.context_only)
        )
        found = self._label(full, learnt, context_only, tokens[rendered.prompt_end])
        if isinstance(found, RowError):
            return found
        last = rendered.last
        is_content = last.is_plain and found.answer == last.content.strip()
        answer = None if is_content else found.answer
        return replace(found, is_partly_learnt=rendered.is_partly_learnt, answer=answer)

    def _tokenize_in_parts(self, text: str, borders: list[int]) -> tuple[Ids, list[int]]:
        # A token crosses a border: the parts are tokenised one by one, as a server would, which
        # has only the text before the answer.
        parts = [text[a:b] for a, b in itertools.pairwise([0, *borders])]
        ids = self._tokenize_texts([*parts, text])
        joined = list(itertools.chain.from_iterable(ids[part] for part in parts))
        if self._tokenizer.decode(joined) != self._tokenizer.decode(ids[text]):
            raise _unsupported("an answer cannot be tokenised apart from the text before it")
        return joined, list(itertools.accumulate(len(ids[part]) for part in parts))

    def _label(
        self, ids: Ids, learnt: list[Span], context_only: list[Span], prompt_length: int
    ) -> ConversationTokens | RowError:
        learnt = [span for span in learnt if span[0] < span[1]]
        if not learnt:
            return RowError("NothingToLearn", "no token of it belongs to an answer", "Remove it.")
        end = learnt[-1][1]
        tail = ids[end:] if self._keep_tail and ids[end - 1] in self._special_ids else []
        ids = ids[:end]
        if ids[-1] not in self._end_ids:
            ids = [*ids, self._tokenizer.eos_token_id]
            learnt[-1] = (learnt[-1][0], len(ids))
        if prompt_length >= self._max_length:
            return self._prompt_too_long(prompt_length)
        labels = list(ids) if self._learn_prompts else [IGNORED] * len(ids)
        for start, stop in context_only:
            labels[start:stop] = [IGNORED] * (stop - start)
        for start, stop in learnt:
            labels[start:stop] = ids[start:stop]
        answer = decode_tokens(self._tokenizer, ids[prompt_length:]).strip()
        ids, labels = [*ids, *tail], [*labels, *[IGNORED] * len(tail)]
        # As arrays, because a million samples as lists of Python integers would not fit the pod.
        arrays = [np.asarray(each[: self._max_length], dtype=np.int32) for each in (ids, labels)]
        is_truncated = len(ids) > self._max_length
        if is_truncated and not (arrays[1] != IGNORED).any():
            return self._prompt_too_long(learnt[0][0])
        return ConversationTokens(
            TokenizedSample(*arrays), len(ids), prompt_length, is_truncated, answer=answer
        )

    def _prompt_too_long(self, length: int) -> LongRowError:
        raise_limit = (
            f"Raise training.maxSequenceLength above {length} (the model allows "
            f"{self._context_length}), "
            if length < self._context_length
            else ""
        )
        return LongRowError(
            "PromptTooLong",
            f"the prompt has {length} tokens and a sequence at most {self._max_length} "
            f"(the model's context is {self._context_length}), so no tokens are left for the "
            "answer",
            f"{raise_limit}{'shorten' if raise_limit else 'Shorten'} the prompt, or set "
            "dataset.longRows to Skip.",
        )


def _borders(rendered: _RenderedConversation) -> list[int]:
    """Where the text is divided into what is learnt and what is not, and its end."""
    spans = (*rendered.learnt, *rendered.context_only)
    edges = {edge for span in spans for edge in span}
    return sorted({rendered.prompt_end, len(rendered.text), *edges})


def _catch_row_error(work: Any, *args: Any) -> Any:
    try:
        return work(*args)
    except RowError as error:
        return error


def _unsupported(why: str) -> RowError:
    return RowError(
        "ChatTemplateUnsupported",
        f"the model's chat template cannot be split into prompts and answers: {why}",
        "Give model.tokenizer.chatTemplate, a template whose add_generation_prompt writes exactly "
        "the beginning of the assistant's turn, or set the template's variables in "
        "chatTemplateKwargs: a row with a thought needs a prompt that allows one.",
    )
