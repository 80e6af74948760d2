"""Which held-out prompts are answered in evaluation, and how long the answers may be.

Where answers are compared, both models answer. Elsewhere the tuned model answers a few, so that one
of the answers can be the probe of the roll-out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RunConfig

COMPARES_ANSWERS = ("SFT", "GRPO")
"""Objectives whose models' answers are compared."""
PROBE_PROMPTS = 8
"""Prompts that the tuned model alone answers, so that one of the answers can be the probe."""
PROBE_PROMPT_TOKENS = 32
"""Tokens of a plain text that are asked as a question, where there are only texts."""


def choose_prompts(
    run: RunConfig, spec: FineTuneJobSpec, tokenizer: Any
) -> list[tuple[dict[str, Any], list[int]]]:
    """Held-out prompts to be answered, tokenised; with the right answer where there is one.

    Where answers are compared, as many as the job asks for; else some, for the probe; none where
    the model gives no answers. They are taken in the order of the judged rows, and leave room for
    an answer in the model's context.
    """
    from finetune_trainer.generation.greedy import tokenize_messages

    if spec.objective == "Reward":
        return []
    most = spec.evaluation.generations if spec.objective in COMPARES_ANSWERS else PROBE_PROMPTS
    context = run.model.context_length if run.model else 1 << 30
    found: list[tuple[dict[str, Any], list[int]]] = []
    for prompt in held_out_prompts(spec, Path(run.paths.job) / "data", tokenizer):
        if len(found) == most:
            break
        tokens = tokenize_messages(tokenizer, prompt["messages"])
        if len(tokens) + max_answer_tokens(spec) <= context:
            found.append((prompt, tokens))
    return found


def max_answer_tokens(spec: FineTuneJobSpec) -> int:
    """In tokens; rewards are given for answers that may be as long as those that were learnt."""
    return max(spec.evaluation.max_new_tokens, spec.grpo.max_new_tokens if spec.grpo else 0)


def held_out_prompts(spec: FineTuneJobSpec, data: Path, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Conversations and right answers, in the order that follows from the seed."""
    from finetune_trainer.data.token_store import TokenStore

    if spec.objective == "Completion":
        store = TokenStore.open(data / "eval")
        for index in np.random.default_rng(spec.training.seed).permutation(store.sequence_count):
            beginning = store.sequence(int(index)).input_ids[:PROBE_PROMPT_TOKENS].tolist()
            text = tokenizer.decode(beginning, skip_special_tokens=True).strip()
            if text:
                yield {"messages": [{"role": "user", "content": text}], "reference": ""}
        return
    lines = (data / "eval.jsonl").read_text().splitlines()
    for index in np.random.default_rng(spec.training.seed).permutation(len(lines)):
        line = json.loads(lines[int(index)])
        names = ("reference", "chosen", "completion")
        right = next((line[name] for name in names if line.get(name) is not None), "")
        yield {"messages": line["messages"], "reference": right}
