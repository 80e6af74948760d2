"""The probe: one prompt and answer that any server of the same weights must reproduce.

Rounding differs between programs, and where two tokens are nearly equally likely it decides between
them. So the probe is an answer in which the tuned model was sure of every token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_api.evaluation_summary import ChatMessage, ProbeRecord

from finetune_trainer.data.message_forms import NO_CONTEXT, ChatContext
from finetune_trainer.data.tokenizer import decode_tokens, prints_date
from finetune_trainer.generation.greedy import Answer

PROBE_MARGINS = {"cpu": 0.05, "cuda": 0.5}
"""Nats between best and second token below which rounding might choose the other one: in fp32 on
CPUs, and in bf16 on GPUs."""
MAX_PROBE_TOKENS = 32
GOOD_PROBE_TOKENS = 8
"""A probe of this many tokens is long enough; from there on certainty counts."""
MAX_PROBE_BYTES = 1500


@dataclass(frozen=True)
class AnsweredPrompt:
    """A held-out prompt with the answers of the tuned model and its baselines."""

    messages: list[dict[str, Any]]
    reference: str
    base: Answer | None
    """None where only the tuned model answers."""
    tuned: Answer
    context: ChatContext = NO_CONTEXT
    prompted: Mapping[str, Answer] = field(default_factory=dict)
    """The base model's answers under the other baselines, by name."""

    @property
    def is_plain(self) -> bool:
        """Whether it has roles and contents only, which is all that the operator can send."""
        plain = all(
            turn.keys() <= {"role", "content"} and turn["role"] != "tool" for turn in self.messages
        )
        return plain and self.context == NO_CONTEXT


def choose_probe(
    tokenizer: Any, answered: Sequence[AnsweredPrompt], margin: float
) -> ProbeRecord | None:
    """The answer of the tuned model that another server is most certain to reproduce.

    An answer is cut before its first token with a margin below `margin` nats, and at 32 tokens. Up
    to 8 tokens a longer answer is better, because it checks more; among longer ones the answer with
    the largest least margin is taken. None where the chat template prints the date, because a
    server's prompt would then change every day.
    """
    if prints_date(tokenizer):
        return None
    best: tuple[Any, ...] = ()
    probe = None
    for each in answered:
        length = stable_length(tokenizer, each.tuned, margin)
        record = make_probe(tokenizer, each, max(1, length))
        if record is None:
            continue
        is_small = len(record.model_dump_json().encode()) <= MAX_PROBE_BYTES
        least = min(each.tuned.margins[: record.max_tokens])
        rank = (is_small, min(length, GOOD_PROBE_TOKENS), least, length)
        if rank > best:
            best, probe = rank, record
    return probe


def stable_length(tokenizer: Any, answer: Answer, margin: float) -> int:
    """Tokens before the first unsure one, 32 at most, and never half a character."""
    unsure = (i for i, least in enumerate(answer.margins) if least < margin)
    length = min(next(unsure, len(answer.margins)), MAX_PROBE_TOKENS)
    # A character of several bytes may need several tokens.
    while length and decode_tokens(tokenizer, answer.tokens[:length]).endswith("�"):
        length -= 1
    return length


def make_probe(tokenizer: Any, answered: AnsweredPrompt, length: int) -> ProbeRecord | None:
    """The record for an answer cut to `length` tokens; None where there is nothing to compare."""
    if not answered.is_plain:
        return None
    text = decode_tokens(tokenizer, answered.tuned.tokens[:length])
    if not text.strip() or any(len(turn["content"]) > 8192 for turn in answered.messages):
        return None
    messages = [ChatMessage.model_validate(turn) for turn in answered.messages]
    return ProbeRecord(messages=messages, answer=text, max_tokens=length)
