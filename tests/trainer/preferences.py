"""Jobs that learn from preferences: their data in the format of the prepare stage, and run files.

The rejected completion has the words of the chosen one in reverse order: a few steps are enough to
distinguish them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.run_config import RunConfig
from finetune_trainer.data.token_store import TokenizedSample, TokenStore
from tokenizers import Tokenizer

from tests.trainer.jobs import make_run, tokenize_row
from tests.trainer.tiny import tiny_rows

OBJECTIVES = ("DPO", "KTO", "ORPO", "SimPO", "Reward")
PAIRS, HELD_OUT = 24, 6


def write_preferences(folder: Path, model: Path, objective: str) -> None:
    """Write data/ of a job: pairs, or for KTO single completions with a label each."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rows = tiny_rows(PAIRS + HELD_OUT)
    halves = {"train": range(PAIRS), "eval": range(PAIRS, PAIRS + HELD_OUT)}
    for half, members in halves.items():
        examples: list[TokenizedSample] = []
        lines: list[dict[str, Any]] = []
        for index in members:
            row, other = rows[index], reverse_words(rows[index]["completion"])
            examples.append(tokenize_row(tokenizer, row))
            examples.append(tokenize_row(tokenizer, {**row, "completion": other}))
            prompt = {"messages": [{"role": "user", "content": row["prompt"]}]}
            if objective == "KTO":
                lines.append({**prompt, "completion": row["completion"], "label": True})
                lines.append({**prompt, "completion": other, "label": False})
            else:
                lines.append({**prompt, "chosen": row["completion"], "rejected": other})
        TokenStore.write(folder / half, examples, [[i] for i in range(len(examples))])
        if objective == "KTO":
            np.save(folder / half / "desirable.npy", np.arange(len(examples)) % 2 == 0)
        if half == "eval":
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "eval.jsonl").write_text(text)


def reverse_words(text: str) -> str:
    """The same words from the last to the first."""
    return " ".join(reversed(text.split()))


def preference_run(
    root: Path, model: Path, objective: str, settings: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    """Like `make_run`, for an objective that learns from preferences."""
    run = make_run(root, model, **more)
    spec = {**run.raw_spec, "objective": objective}
    if settings:
        spec[objective.lower()] = settings
    assert run.data is not None
    data = run.data.model_copy(
        update={
            "format": "unpaired" if objective == "KTO" else "preference",
            "train_sequences": 2 * PAIRS if objective == "KTO" else PAIRS,
        }
    )
    return run.model_copy(update={"raw_spec": spec, "data": data})
