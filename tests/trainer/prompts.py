"""Jobs that learn by sampling: their prompts in the format of the prepare stage, and run files.

A random model rarely samples one given end token, so these models have a hundred of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_api.run_config import RunConfig
from finetune_trainer.data.token_store import IGNORED, TokenizedSample, TokenStore
from finetune_trainer.methods import load_base_model
from tokenizers import Tokenizer

from tests.trainer.jobs import make_run
from tests.trainer.tiny import VOCABULARY, tiny_model, tiny_rows

PROMPTS, HELD_OUT = 16, 6
ENDS = list(range(2, 102))


def make_prompt(length: int, seed: int) -> np.ndarray:
    """Tokens that are no special tokens, int32[length]."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).astype(np.int32)


def decisive_model(folder: Path) -> Any:
    """A model with logits far apart, so that rounding changes no comparison."""
    loaded = load_base_model(folder, torch.float32).eval()
    with torch.no_grad():
        loaded.get_output_embeddings().weight.mul_(20)
    return loaded


def talkative_model(folder: Path) -> Path:
    """The tiny model with a hundred end tokens: half of its completions end within eight tokens."""
    tiny_model(folder)
    config = {"eos_token_id": ENDS, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def write_prompts(folder: Path, model: Path) -> None:
    """Write data/ of a job: prompts as tokens, and as text with their references."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rows = tiny_rows(PROMPTS + HELD_OUT)
    for half, members in {"train": rows[:PROMPTS], "eval": rows[PROMPTS:]}.items():
        samples, lines = [], []
        for index, row in enumerate(members):
            # Of different lengths, so that batches are padded.
            text_of_prompt = row["prompt"] + " Please." * (index % 3)
            text = f"<|im_start|>user\n{text_of_prompt}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            samples.append(TokenizedSample(ids, [IGNORED] * len(ids)))
            messages = [{"role": "user", "content": text_of_prompt}]
            lines.append({"messages": messages, "reference": row["completion"]})
        TokenStore.write(folder / half, samples, [[i] for i in range(len(samples))])
        (folder / f"{half}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def prompt_run(
    root: Path, model: Path, settings: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    """Like `make_run`, for GRPO: four completions of at most eight tokens for each prompt."""
    run = make_run(root, model, **{"batch_size": 16, "micro_batch_size": 4, **more})
    grpo = {"rewards": [{"type": "length"}], "generations": 4, "maxNewTokens": 8}
    spec = {**run.raw_spec, "objective": "GRPO", "grpo": {**grpo, **(settings or {})}}
    assert run.data is not None
    data = run.data.model_copy(update={"format": "prompt", "train_sequences": PROMPTS})
    return run.model_copy(update={"raw_spec": spec, "data": data})
