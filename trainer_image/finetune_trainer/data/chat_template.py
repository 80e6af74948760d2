"""From conversations to tokens and labels, through the model's own chat template.

Only what the assistant says is learnt: each of its turns up to and including the token that ends
the turn. Where the template marks those parts ({% generation %}), the marks decide. Otherwise the
part is what the rendered text gains by the turn, and a comparison of tokens verifies that the text
before it is tokenised the same way on its own, because that is all that a served model has when it
has to answer. Special tokens come from the template only, so there is no second BOS; nothing is
padded here, so a pad token that equals EOS hides nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_trainer.data.chat_context import NO_CONTEXT, ChatContext
from finetune_trainer.data.message_forms import MessageForm, to_messages
from finetune_trainer.data.rendering import ChatRenderer
from finetune_trainer.data.row_errors import LongRowError, RowError
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.token_store import IGNORED, TokenizedSample
from finetune_trainer.data.tokenizer import decode_tokens, special_token_ids
from finetune_trainer.data.turns import Turn

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Ids = list[int]
Span = tuple[int, int]
"""Half-open range, of tokens or of characters."""
_Answered = tuple[Ids, list[Span], list[bool]]
"""Tokens of a conversation, where its answers are, and which of them are learnt."""


@dataclass(frozen=True)
class ConversationTokens:
    """The tokens of one conversation, truncated to the longest sequence."""

    tokenized: TokenizedSample
    full_length: int
    """Tokens before truncation."""
    prompt_length: int
    """Tokens before the last answer."""
    is_truncated: bool
    answer: str | None = None
    """Text of the last answer, where its turn has more than a content."""


class ChatTokenizer:
    """Tokenizes conversations with a job's tokenizer, template and longest sequence."""

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        context_length: int,
        learn_prompts: bool = False,
        keep_tail: bool = False,
    ) -> None:
        """`max_length` is the job's maxSequenceLength in tokens, `context_length` the model's.

        With `learn_prompts` the prompts are learnt too (sft.lossOn All). With `keep_tail` a
        conversation keeps what the template writes after its last turn: a reward model gives its
        score there to any caller that renders the template.
        """
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._context_length = context_length
        self._learn_prompts = learn_prompts
        self._keep_tail = keep_tail
        self._renderer = ChatRenderer(tokenizer)
        self._has_marks = bool(_GENERATION_MARK.search(str(tokenizer.chat_template)))
        self._special_ids = special_token_ids(tokenizer)
        self._special_tokens = tuple(tokenizer.convert_ids_to_tokens(sorted(self._special_ids)))

    def tokenize(
        self, conversations: Sequence[MessagesSample]
    ) -> list[ConversationTokens | RowError]:
        """The tokens of each conversation, or why it cannot be used; in the same order."""
        if self._has_marks:
            found = [_catch_row_error(self._tokenize_by_marks, each) for each in conversations]
        else:
            found = self._tokenize_by_prefixes(conversations)
        return [
            each if isinstance(each, RowError) else self._label(conversation, *each)
            for conversation, each in zip(conversations, found, strict=True)
        ]

    def tokenize_prompt(
        self,
        turns: Sequence[Turn],
        context: ChatContext = NO_CONTEXT,
        form: MessageForm | None = None,
    ) -> Ids:
        """What a server gives the model to answer: the turns and the beginning of the answer."""
        form = form or self._renderer.choose_form(turns, context)
        text = self._renderer.render(turns, context, form, add_generation_prompt=True)
        return self._tokenize_texts([text])[text]

    def _tokenize_by_marks(self, conversation: MessagesSample) -> _Answered:
        turns, context = conversation.turns, conversation.context
        form = self._renderer.choose_form(turns, context)
        self._renderer.render(turns, context, form)  # RowError where the template refuses it
        encoded = self._tokenizer.apply_chat_template(
            to_messages(turns, form),
            **context.to_json(),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        prompt_turns = turns[: conversation.prompt_turns]
        prompt = self.tokenize_prompt(prompt_turns, context, form) if prompt_turns else []
        spans = [span for span in _find_runs(mask) if span[1] > len(prompt)]
        if not spans:
            raise _unsupported("its generation marks hold nothing of this conversation")
        is_learnt = [turn.is_learnt for turn in _answers_of(conversation)]
        if not all(is_learnt) and len(is_learnt) != len(spans):
            raise _unsupported("its generation marks do not tell one answer from the next")
        is_learnt = is_learnt if len(is_learnt) == len(spans) else [True] * len(spans)
        return ids, [self._include_end_token(ids, span) for span in spans], is_learnt

    def _include_end_token(self, ids: Ids, span: Span) -> Span:
        # Some templates close the mark before the token that ends the turn.
        start, end = span
        is_outside = end < len(ids) and ids[end] in self._special_ids
        return (start, end + 1) if is_outside and ids[end - 1] not in self._special_ids else span

    def _tokenize_by_prefixes(self, conversations: Sequence[MessagesSample]) -> list[Any]:
        rendered = [_catch_row_error(self._render_with_answers, each) for each in conversations]
        texts = [
            prefix
            for each in rendered
            if not isinstance(each, RowError)
            for prefix in (each.text, *(each.text[:end] for span in each.answers for end in span))
        ]
        ids = self._tokenize_texts(texts)
        return [
            each if isinstance(each, RowError) else _catch_row_error(self._find_answers, each, ids)
            for each in rendered
        ]

    def _tokenize_texts(self, texts: list[str]) -> dict[str, Ids]:
        distinct = list(dict.fromkeys(text for text in texts if text))
        if not distinct:
            return {"": []}
        ids = self._tokenizer(distinct, add_special_tokens=False)["input_ids"]
        return {"": [], **dict(zip(distinct, ids, strict=True))}

    def _render_with_answers(self, conversation: MessagesSample) -> _RenderedConversation:
        turns, context = conversation.turns, conversation.context
        form = self._renderer.choose_form(turns, context)

        def render(count: int, add_generation_prompt: bool = False) -> str:
            return self._renderer.render(turns[:count], context, form, add_generation_prompt)

        text = render(len(turns))
        answers = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant" and index >= conversation.prompt_turns:
                before = render(index, add_generation_prompt=True)
                if not text.startswith(before):
                    raise _unsupported("the text before an answer changes when the answer comes")
                after = text if turn is turns[-1] else render(index + 1)
                end = _find_end_of_turn(text, before, after, turn.content, self._special_tokens)
                answers.append((len(before), end))
        is_learnt = [turn.is_learnt for turn in _answers_of(conversation)]
        return _RenderedConversation(text, answers, is_learnt)

    def _find_answers(self, rendered: _RenderedConversation, ids: dict[str, Ids]) -> _Answered:
        full = ids[rendered.text]
        prefixes = [ids[rendered.text[:end]] for span in rendered.answers for end in span]
        if any(full[: len(prefix)] != prefix for prefix in prefixes):
            return (*self._tokenize_in_parts(rendered), rendered.is_learnt)
        borders = [len(prefix) for prefix in prefixes]
        return full, list(zip(borders[::2], borders[1::2], strict=True)), rendered.is_learnt

    def _tokenize_in_parts(self, rendered: _RenderedConversation) -> tuple[Ids, list[Span]]:
        """Tokens of each part on its own, for text that merges across the border of an answer.

        An answer that begins with a line feed may merge with the template's own. A served model
        never sees the merged token: it gets the prompt's tokens and adds its own.
        """
        borders = [0, *itertools.chain.from_iterable(rendered.answers), len(rendered.text)]
        parts = [rendered.text[a:b] for a, b in itertools.pairwise(borders)]
        ids = self._tokenize_texts(parts)
        joined = list(itertools.chain.from_iterable(ids[part] for part in parts))
        merged = self._tokenize_texts([rendered.text])[rendered.text]
        if self._tokenizer.decode(joined) != self._tokenizer.decode(merged):
            raise _unsupported("an answer cannot be tokenised apart from the text before it")
        ends = list(itertools.accumulate(len(ids[part]) for part in parts))
        return joined, [(ends[i], ends[i + 1]) for i in range(0, len(ends) - 1, 2)]

    def _label(
        self, conversation: MessagesSample, ids: Ids, spans: list[Span], is_learnt: list[bool]
    ) -> ConversationTokens | RowError:
        trimmed = [self._trim_blanks(ids, span) for span in spans]
        answers = [
            span
            for span, learnt in zip(trimmed, is_learnt, strict=True)
            if learnt and span[0] < span[1]
        ]
        if not answers:
            return RowError("NothingToLearn", "no token of it belongs to an answer", "Remove it.")
        prompt_length, end = answers[-1]
        tail = ids[end:] if self._keep_tail and ids[end - 1] in self._special_ids else []
        ids = ids[:end]
        if ids[-1] not in self._special_ids:
            ids = [*ids, self._tokenizer.eos_token_id]
            answers[-1] = (prompt_length, len(ids))
        if prompt_length >= self._max_length:
            return self._prompt_too_long(prompt_length)
        labels = list(ids) if self._learn_prompts else [IGNORED] * len(ids)
        for start, stop in trimmed:  # what is not learnt is context even where prompts are learnt
            labels[start:stop] = [IGNORED] * len(labels[start:stop])
        for start, stop in answers:
            labels[start:stop] = ids[start:stop]
        is_plain = conversation.turns[-1].is_plain
        answer = None if is_plain else decode_tokens(self._tokenizer, ids[prompt_length:])
        ids, labels = [*ids, *tail], [*labels, *[IGNORED] * len(tail)]
        # As arrays, because a million samples as lists of Python integers would not fit the pod.
        arrays = [np.asarray(each[: self._max_length], dtype=np.int32) for each in (ids, labels)]
        is_truncated = len(ids) > self._max_length
        return ConversationTokens(
            TokenizedSample(*arrays), len(ids), prompt_length, is_truncated, answer
        )

    def _trim_blanks(self, ids: Ids, span: Span) -> Span:
        """The span without the white space that many templates put after the end of a turn."""
        start, end = span
        last = end
        while last > start and ids[last - 1] not in self._special_ids:
            last -= 1
            if not self._tokenizer.decode([ids[last]]).isspace():
                return span
        return (start, last) if last > start else span

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


@dataclass(frozen=True)
class _RenderedConversation:
    text: str
    answers: list[Span]
    """Where the answers are, in characters."""
    is_learnt: list[bool]
    """Whether each answer is learnt, or context only."""


def _answers_of(conversation: MessagesSample) -> list[Turn]:
    """The assistant's turns after the prompt."""
    turns = conversation.turns[conversation.prompt_turns :]
    return [turn for turn in turns if turn.role == "assistant"]


def _catch_row_error(work: Any, *args: Any) -> Any:
    try:
        return work(*args)
    except RowError as error:
        return error


def _find_end_of_turn(
    text: str, before: str, after: str, content: str, special_tokens: Sequence[str]
) -> int:
    """Where the turn ends in `text`: `before` renders the turns before it, `after` it too.

    Usually `text` begins with `after`. Some templates write the last turn differently from the ones
    before it (Qwen3 adds an empty thought); then what follows the content is compared, or at least
    the first of `special_tokens` in it (Phi-3 ends the document after the last turn).
    """
    if text.startswith(after):
        return len(after)
    bare = content.strip()
    start = text.find(bare, len(before))
    tail = after[after.rfind(bare) + len(bare) :]
    if start < 0 or text[len(before) : start].strip() or bare not in after:
        raise _unsupported("an answer is written differently when the conversation continues")
    end = start + len(bare)
    if not text.startswith(tail, end):
        tail = _cut_after_first(tail, special_tokens)
    if not tail or not text.startswith(tail, end):
        raise _unsupported("an answer ends differently when the conversation continues")
    return end + len(tail)


def _cut_after_first(text: str, tokens: Sequence[str]) -> str:
    """The text up to the end of the first of `tokens` in it; empty where it has none."""
    ends = [(at, at + len(token)) for token in tokens if (at := text.find(token)) >= 0]
    return text[: min(ends, key=lambda found: (found[0], -found[1]))[1]] if ends else ""


def _find_runs(mask: Sequence[int]) -> list[Span]:
    """Half-open ranges of ones."""
    padded = [0, *mask, 0]
    changes = [i for i in range(len(mask) + 1) if padded[i] != padded[i + 1]]
    return list(zip(changes[::2], changes[1::2], strict=True))


def _unsupported(why: str) -> RowError:
    return RowError(
        "ChatTemplateUnsupported",
        f"the model's chat template cannot be split into prompts and answers: {why}",
        "Put {% generation %} marks around the assistant's part of the template.",
    )
