"""The prompts of baselines: held-out prompts with another system turn, or with examples.

They are rendered by the chat template of training and serving. A prompt that would leave no tokens
for an answer gets fewer examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import Baseline, FineTuneJobSpec

from finetune_trainer.data.examples import count_examples
from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.data.message_forms import ChatContext
from finetune_trainer.data.prepared_dataset import EXAMPLES

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class BaselinePrompt:
    """The prompt of a baseline for one held-out row."""

    input_ids: list[int]
    examples: int
    """Examples that fit."""


@dataclass(frozen=True)
class BaselinePrompter:
    """Writes the prompts of one baseline."""

    baseline: Baseline
    examples: list[dict[str, Any]]
    """Training rows with messages and reference, as many as the baseline has."""
    tokenizer: Any
    max_tokens: int
    """Longest prompt."""

    @property
    def name(self) -> str:
        return self.baseline.name

    def write(self, messages: Messages, context: ChatContext) -> BaselinePrompt | None:
        """The prompt with as many examples as fit; None where not even a prompt without fits.

        Raises RowError where the chat template refuses it.
        """
        from finetune_trainer.generation.greedy import tokenize_messages

        for count in range(len(self.examples), -1, -1):
            turns = add_prompt(self.baseline.system_prompt, self.examples[:count], messages)
            input_ids = tokenize_messages(self.tokenizer, turns, context)
            if len(input_ids) <= self.max_tokens:
                return BaselinePrompt(input_ids, count)
        return None


def open_baselines(
    spec: FineTuneJobSpec, data: Path, tokenizer: Any, max_tokens: int
) -> list[BaselinePrompter]:
    """The baselines of a job; `data` is the prepared dataset."""
    examples = read_json_lines(data / EXAMPLES) if count_examples(spec) else []
    return make_prompters(spec, examples, tokenizer, max_tokens)


def make_prompters(
    spec: FineTuneJobSpec, examples: list[dict[str, Any]], tokenizer: Any, max_tokens: int
) -> list[BaselinePrompter]:
    """The baselines of a job; `examples` are as many as one of them needs at most."""
    return [
        BaselinePrompter(baseline, examples[: baseline.examples or 0], tokenizer, max_tokens)
        for baseline in spec.evaluation.baselines
    ]


def add_prompt(system_prompt: str | None, examples: Messages, messages: Messages) -> Messages:
    """`messages` with another system turn, where one is given, and with examples as turns.

    The system turns of examples are left out, because a conversation has one.
    """
    own = [turn for turn in messages if turn["role"] == "system"]
    system = own if system_prompt is None else [{"role": "system", "content": system_prompt}]
    shown = [
        turn
        for example in examples
        for turn in (*example["messages"], {"role": "assistant", "content": example["reference"]})
    ]
    return [*system, *(turn for turn in (*shown, *messages) if turn["role"] != "system")]
