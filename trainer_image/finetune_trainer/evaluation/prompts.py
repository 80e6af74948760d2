"""Which held-out prompts the models answer in evaluation, and how long the answers may be.

Where answers are compared, both models answer. Otherwise the tuned model answers a few, so that one
of the answers can be the probe of the roll-out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig

from finetune_trainer.data.answer_text import split_thought
from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.data.message_forms import NO_CONTEXT, ChatContext
from finetune_trainer.evaluation.baselines import BaselinePrompt, BaselinePrompter, open_baselines

OBJECTIVES_WITH_ANSWERS = ("SFT", "GRPO")
"""Objectives whose evaluation compares the models' answers."""
PROBE_PROMPTS = 8
"""Prompts that the tuned model alone answers, so that one of the answers can be the probe."""
PROBE_PROMPT_TOKENS = 32
"""Tokens at the beginning of a text that become a prompt where the data has only texts."""


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt for both models."""

    messages: list[dict[str, Any]]
    reference: str
    """The right answer; empty where there is none."""
    input_ids: list[int]
    """The messages and the beginning of the answer."""
    context: ChatContext = NO_CONTEXT
    baselines: Mapping[str, BaselinePrompt] = field(default_factory=dict)
    """Its prompt under each baseline other than the base, by name."""


def choose_prompts(run: RunConfig, tokenizer: Any) -> list[HeldOutPrompt]:
    """The held-out prompts that are answered.

    Where answers are compared, as many as the job requests; otherwise some, for the probe; none
    where the model gives no answers. They come in an order that the seed decides, and leave tokens
    for an answer in the model's context, under every baseline.
    """
    spec = run.spec
    if spec.objective == "Reward":
        return []
    count = (
        spec.evaluation.generations if spec.objective in OBJECTIVES_WITH_ANSWERS else PROBE_PROMPTS
    )
    context = run.model.context_length if run.model else 1 << 30
    longest = context - max_answer_tokens(spec)
    data = Path(run.paths.job) / "data"
    prompters = open_baselines(spec, data, tokenizer, longest)
    lines = read_held_out_prompts(spec, data, tokenizer)
    return select_prompts(lines, prompters, tokenizer, longest, count)


def select_prompts(
    lines: Iterable[Mapping[str, Any]],
    prompters: Sequence[BaselinePrompter],
    tokenizer: Any,
    longest: int,
    count: int,
) -> list[HeldOutPrompt]:
    """The first `count` lines whose prompt has at most `longest` tokens, under every baseline."""
    from finetune_trainer.generation.greedy import tokenize_messages

    prompts: list[HeldOutPrompt] = []
    for line in lines:
        if len(prompts) == count:
            break
        chat_context = ChatContext(tuple(line.get("tools", ())), tuple(line.get("documents", ())))
        input_ids = tokenize_messages(tokenizer, line["messages"], chat_context)
        written = {each.name: each.write(line["messages"], chat_context) for each in prompters}
        baselines = {name: prompt for name, prompt in written.items() if prompt is not None}
        if len(input_ids) <= longest and len(baselines) == len(prompters):
            prompts.append(
                HeldOutPrompt(
                    line["messages"], _find_reference(line), input_ids, chat_context, baselines
                )
            )
    return prompts


def max_answer_tokens(spec: FineTuneJobSpec) -> int:
    """Longest answer in tokens; GRPO's rewards need answers as long as those in training."""
    return max(spec.evaluation.max_new_tokens, spec.grpo.max_new_tokens if spec.grpo else 0)


def read_held_out_prompts(
    spec: FineTuneJobSpec, data: Path, tokenizer: Any
) -> Iterator[dict[str, Any]]:
    """Lines of eval.jsonl in an order that the seed decides; of texts the beginning, as a user's
    turn."""
    from finetune_trainer.data.token_store import TokenStore

    generator = np.random.default_rng(spec.training.seed)
    if spec.objective == "Completion":
        store = TokenStore.open(data / "eval")
        for index in generator.permutation(store.sequence_count):
            beginning = store.sequence(int(index)).input_ids[:PROBE_PROMPT_TOKENS].tolist()
            text = tokenizer.decode(beginning, skip_special_tokens=True).strip()
            if text:
                yield {"messages": [{"role": "user", "content": text}]}
        return
    rows = read_json_lines(data / "eval.jsonl")
    yield from (rows[index] for index in order_prompts(spec, len(rows)))


def order_prompts(spec: FineTuneJobSpec, rows: int) -> list[int]:
    """The order in which held-out rows are answered, which the seed decides."""
    order: list[int] = np.random.default_rng(spec.training.seed).permutation(rows).tolist()
    return order


def list_references(spec: FineTuneJobSpec, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The right answers of the held-out rows of SFT, without thoughts; else none."""
    if spec.objective != "SFT":
        return []
    return [split_thought(_find_reference(row))[1] for row in rows]


def _find_reference(row: Mapping[str, Any]) -> str:
    columns = ("reference", "chosen", "completion")
    return next((row[name] for name in columns if row.get(name) is not None), "")
