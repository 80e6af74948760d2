"""The probe: one prompt and answer that any server of the same weights must reproduce.

Rounding differs between programs, and where two tokens are nearly equally likely it decides.
So the probe is an answer of whose every token the tuned model was sure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.run import ChatMessage, ProbeRecord

from finetune_trainer.data.tokenizer import prints_date
from finetune_trainer.generation.greedy import Answer, decode_tokens

PROBE_MARGINS = {"cpu": 0.05, "cuda": 0.5}
"""Nats between best and second token below which rounding might choose the other one: in fp32 on
CPUs, and in bf16 on GPUs."""
PROBE_TOKENS = 32
PROBE_GOOD_TOKENS = 8
PROBE_BYTES = 1500


@dataclass(frozen=True)
class AnsweredPrompt:
    """A held-out prompt and what both models said."""

    messages: list[dict[str, str]]
    reference: str
    base: Answer | None
    """None where only the tuned model was asked."""
    tuned: Answer


def choose_probe(tokenizer: Any, samples: Sequence[AnsweredPrompt], margin: float) -> ProbeRecord | None:
    """The answer of the tuned model that another server is surest to reproduce.

    An answer is cut before its first token with less than `margin` nats and at 32 tokens. A longer
    answer says more, up to 8 tokens; from there on the one whose least margin is largest is taken.
    None where the chat template prints the date: a server would be asked another question each day.
    """
    if prints_date(tokenizer):
        return None
    best: tuple[Any, ...] = ()
    found = None
    for sample in samples:
        length = stable_length(tokenizer, sample.tuned, margin)
        record = make_probe(tokenizer, sample, max(1, length))
        if record is None:
            continue
        small = len(record.model_dump_json().encode()) <= PROBE_BYTES
        least = min(sample.tuned.margins[: record.max_tokens])
        rank = (small, min(length, PROBE_GOOD_TOKENS), least, length)
        if rank > best:
            best, found = rank, record
    return found


def stable_length(tokenizer: Any, answer: Answer, margin: float) -> int:
    """Tokens before the first unsure one, 32 at most, and never half a character."""
    sure = (i for i, least in enumerate(answer.margins) if least < margin)
    length = min(next(sure, len(answer.margins)), PROBE_TOKENS)
    # A character of several bytes may need several tokens.
    while length and decode_tokens(tokenizer, answer.tokens[:length]).endswith("�"):
        length -= 1
    return length


def make_probe(tokenizer: Any, sample: AnsweredPrompt, length: int) -> ProbeRecord | None:
    """The record for an answer cut to `length` tokens; None where there is nothing to compare."""
    text = decode_tokens(tokenizer, sample.tuned.tokens[:length])
    if not text.strip() or any(len(turn["content"]) > 8192 for turn in sample.messages):
        return None
    messages = [ChatMessage.model_validate(turn) for turn in sample.messages]
    return ProbeRecord(messages=messages, answer=text, max_tokens=length)
