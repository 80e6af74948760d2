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

ANSWERED = ("SFT", "GRPO")
"""Objectives whose models' answers are compared."""
PROBES = 8
"""Prompts that the tuned model alone answers, so that one of the answers can be the probe."""
PROBE_BEGINNING = 32
"""Tokens of a plain text that are asked as a question, where there are only texts."""


def questions(
    run: RunConfig, spec: FineTuneJobSpec, tokenizer: Any
) -> list[tuple[dict[str, Any], list[int]]]:
    """Held-out prompts to be answered, tokenised; with the right answer where there is one.

    Where answers are compared, as many as the job asks for; else some, for the probe; none where
    the model gives no answers. They are taken in the order of the judged rows, and leave room for
    an answer in the model's context.
    """
    from finetune_trainer.generation.greedy import render

    if spec.objective == "Reward":
        return []
    most = spec.evaluation.generations if spec.objective in ANSWERED else PROBES
    context = run.model.context_length if run.model else 1 << 30
    found: list[tuple[dict[str, Any], list[int]]] = []
    for prompt in held_out_prompts(spec, Path(run.paths.job) / "data", tokenizer):
        if len(found) == most:
            break
        tokens = render(tokenizer, prompt["messages"])
        if len(tokens) + longest_answer(spec) <= context:
            found.append((prompt, tokens))
    return found


def longest_answer(spec: FineTuneJobSpec) -> int:
    """In tokens; rewards are given for answers that may be as long as those that were learnt."""
    return max(spec.evaluation.max_new_tokens, spec.grpo.max_new_tokens if spec.grpo else 0)


def held_out_prompts(spec: FineTuneJobSpec, data: Path, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Conversations and right answers, in the order that follows from the seed."""
    from finetune_trainer.data.token_store import TokenStore

    if spec.objective == "Completion":
        store = TokenStore.open(data / "eval")
        for index in np.random.default_rng(spec.training.seed).permutation(store.rows):
            beginning = store.row(int(index)).input_ids[:PROBE_BEGINNING].tolist()
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
