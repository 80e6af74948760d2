"""From conversations to tokens and labels, through the model's own chat template.

Only what the assistant says is learnt: every turn of it, up to and including the token that ends
the turn. Where the template marks those parts ({% generation %}), the marks decide. Otherwise the
part is what the rendered text gains by the turn, and it is verified token by token that the text
before it is tokenised the same way alone, because that is all that a served model will see when
it has to answer. Special tokens come from the template only, so there is no second BOS, and a pad
token that equals EOS hides nothing, because nothing is padded here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_trainer.data.messages import MessagesSample, Turn, dicts
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.token_store import IGNORED, TokenizedSample
from finetune_trainer.data.tokenizer import markers_of

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Ids = list[int]
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """One conversation, cut to the longest sequence."""

    example: TokenizedSample
    full_length: int
    """Tokens before cutting."""
    prompt_length: int
    """Tokens before the last answer."""
    truncated: bool


class ChatTokenizer:
    """Tokenizer, template and longest sequence of one job."""

    def __init__(
        self,
        tokenizer: Any,
        longest: int,
        context: int,
        learn_all: bool = False,
        scored: bool = False,
    ) -> None:
        """`longest` is the job's maxSequenceLength in tokens, `context` the model's limit.

        With `learn_all` the prompts are learnt too (sft.lossOn All). With `scored` a conversation
        keeps what the template writes behind its last turn: a reward model gives its score there
        to whoever renders the template.
        """
        self._tokenizer = tokenizer
        self._longest = longest
        self._context = context
        self._learn_all = learn_all
        self._scored = scored
        self._marked = bool(_MARKS.search(str(tokenizer.chat_template)))
        self._markers = markers_of(tokenizer)
        self._marker_texts = tuple(tokenizer.convert_ids_to_tokens(sorted(self._markers)))

    def encode(self, conversations: Sequence[MessagesSample]) -> list[Encoded | RowError]:
        """Each conversation as tokens, or why it cannot be used; in the same order."""
        if self._marked:
            found = [self._attempt(self._by_marks, each) for each in conversations]
        else:
            found = self._by_prefixes(conversations)
        return [each if isinstance(each, RowError) else self._finished(*each) for each in found]

    def render(self, turns: Sequence[Turn], for_answer: bool = False) -> str:
        """The template's text; BadRow where the template refuses the conversation."""
        from jinja2 import TemplateError

        messages = dicts(turns)
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=for_answer
                )
            )
        except TemplateError as error:
            raise RowError(
                "BadConversation",
                f"the model's chat template refuses it: {error}",
                "Follow the template: usually user and assistant take turns, and some models "
                "know no system turn.",
            ) from None

    def prompt_tokens(self, turns: Sequence[Turn]) -> Ids:
        """What a server is given to answer: the turns and the beginning of the answer."""
        text = self.render(turns, for_answer=True)
        return self._tokenized([text])[text]

    def _attempt(self, work: Any, *args: Any) -> Any:
        try:
            return work(*args)
        except RowError as error:
            return error

    def _by_marks(self, row: MessagesSample) -> tuple[Ids, list[Span]]:
        turns = row.turns
        self.render(turns)  # tells refusals apart from other failures
        encoded = self._tokenizer.apply_chat_template(
            dicts(turns),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        asked = self.prompt_tokens(turns[: row.asked]) if row.asked else []
        spans = [span for span in _runs(mask) if span[1] > len(asked)]
        if not spans:
            raise _unsupported("its generation marks hold nothing of this conversation")
        return ids, [self._with_end_token(ids, span) for span in spans]

    def _with_end_token(self, ids: Ids, span: Span) -> Span:
        # Some templates close the mark before the token that ends the turn.
        start, end = span
        outside = end < len(ids) and ids[end] in self._markers
        return (start, end + 1) if outside and ids[end - 1] not in self._markers else span

    def _by_prefixes(self, conversations: Sequence[MessagesSample]) -> list[Any]:
        cuts = [self._attempt(self._cut, each) for each in conversations]
        texts = [
            prefix
            for cut in cuts
            if not isinstance(cut, RowError)
            for prefix in (cut.text, *(cut.text[:end] for span in cut.spans for end in span))
        ]
        ids = self._tokenized(texts)
        return [
            cut if isinstance(cut, RowError) else self._attempt(self._tokens_of, cut, ids)
            for cut in cuts
        ]

    def _tokenized(self, texts: list[str]) -> dict[str, Ids]:
        distinct = list(dict.fromkeys(text for text in texts if text))
        if not distinct:
            return {"": []}
        ids = self._tokenizer(distinct, add_special_tokens=False)["input_ids"]
        return {"": [], **dict(zip(distinct, ids, strict=True))}

    def _cut(self, row: MessagesSample) -> _Cut:
        turns = row.turns
        text = self.render(turns)
        spans = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant" and index >= row.asked:
                before = self.render(turns[:index], for_answer=True)
                if not text.startswith(before):
                    raise _unsupported("the text before an answer changes when the answer comes")
                after = text if turn is turns[-1] else self.render(turns[: index + 1])
                end = _end_of_turn(text, before, after, turn.content, self._marker_texts)
                spans.append((len(before), end))
        return _Cut(text, spans)

    def _tokens_of(self, cut: _Cut, ids: dict[str, Ids]) -> tuple[Ids, list[Span]]:
        full = ids[cut.text]
        ends = [ids[cut.text[:end]] for span in cut.spans for end in span]
        if any(full[: len(prefix)] != prefix for prefix in ends):
            return self._stitched(cut)
        places = [len(prefix) for prefix in ends]
        return full, list(zip(places[::2], places[1::2], strict=True))

    def _stitched(self, cut: _Cut) -> tuple[Ids, list[Span]]:
        """Tokens of each part alone, for text that merges across the border of an answer.

        An answer that begins with a line feed may merge with the template's own. Served, the
        model never sees the merged token: it is given the prompt's tokens and adds its own.
        """
        borders = [0, *itertools.chain.from_iterable(cut.spans), len(cut.text)]
        parts = [cut.text[a:b] for a, b in itertools.pairwise(borders)]
        ids = self._tokenized(parts)
        joined = list(itertools.chain.from_iterable(ids[part] for part in parts))
        whole = self._tokenized([cut.text])[cut.text]
        if self._tokenizer.decode(joined) != self._tokenizer.decode(whole):
            raise _unsupported("an answer cannot be tokenised apart from what stands before it")
        places = list(itertools.accumulate(len(ids[part]) for part in parts))
        return joined, [(places[i], places[i + 1]) for i in range(0, len(places) - 1, 2)]

    def _finished(self, ids: Ids, spans: list[Span]) -> Encoded | RowError:
        spans = [
            span for span in (self._without_blanks(ids, s) for s in spans) if span[0] < span[1]
        ]
        if not spans:
            return RowError("NothingToLearn", "no token of it belongs to an answer", "Remove it.")
        prompt, end = spans[-1]
        tail = ids[end:] if self._scored and ids[end - 1] in self._markers else []
        ids = ids[:end]
        if ids[-1] not in self._markers:
            ids = [*ids, self._tokenizer.eos_token_id]
            spans[-1] = (prompt, len(ids))
        if prompt >= self._longest:
            return self._prompt_too_long(prompt)
        labels = list(ids) if self._learn_all else [IGNORED] * len(ids)
        for start, stop in spans:
            labels[start:stop] = ids[start:stop]
        ids, labels = [*ids, *tail], [*labels, *[IGNORED] * len(tail)]
        # Arrays at once: a million rows as lists of Python integers would not fit the pod.
        kept = [np.asarray(part[: self._longest], dtype=np.int32) for part in (ids, labels)]
        example = TokenizedSample(kept[0], kept[1])
        return Encoded(example, len(ids), prompt, truncated=len(ids) > self._longest)

    def _without_blanks(self, ids: Ids, span: Span) -> Span:
        """The span without the white space that many templates put behind the end of a turn."""
        start, end = span
        last = end
        while last > start and ids[last - 1] not in self._markers:
            last -= 1
            if not self._tokenizer.decode([ids[last]]).isspace():
                return span
        return (start, last) if last > start else span

    def _prompt_too_long(self, prompt: int) -> RowError:
        raise_it = (
            f"Raise training.maxSequenceLength above {prompt} (the model allows {self._context}), "
            if prompt < self._context
            else ""
        )
        return RowError(
            "PromptTooLong",
            f"the prompt has {prompt} tokens and a sequence at most {self._longest} "
            f"(the model's context is {self._context}), so there is no room for the answer",
            f"{raise_it}{'shorten' if raise_it else 'Shorten'} the prompt, or remove the row.",
        )


@dataclass(frozen=True)
class _Cut:
    """A rendered conversation and where, in characters, the answers stand in it."""

    text: str
    spans: list[Span]


def _end_of_turn(text: str, before: str, after: str, content: str, markers: Sequence[str]) -> int:
    """Where the turn ends in `text`: `before` renders the turns before it, `after` it too.

    Usually `after` is how the text begins. Some templates write the last turn differently from
    the ones before it (Qwen3 adds an empty thought); then what follows the content is compared,
    or at least its first one of `markers` (Phi-3 ends the document after the last turn).
    """
    if text.startswith(after):
        return len(after)
    bare = content.strip()
    where = text.find(bare, len(before))
    tail = after[after.rfind(bare) + len(bare) :]
    if where < 0 or text[len(before) : where].strip() or bare not in after:
        raise _unsupported("an answer is written differently when the conversation goes on")
    end = where + len(bare)
    if not text.startswith(tail, end):
        tail = _to_first(tail, markers)
    if not tail or not text.startswith(tail, end):
        raise _unsupported("an answer ends differently when the conversation goes on")
    return end + len(tail)


def _to_first(text: str, markers: Sequence[str]) -> str:
    """The text up to the end of the first marker in it; nothing where it has none."""
    ends = [(at, at + len(marker)) for marker in markers if (at := text.find(marker)) >= 0]
    return text[: min(ends, key=lambda found: (found[0], -found[1]))[1]] if ends else ""


def _runs(mask: Sequence[int]) -> list[Span]:
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
