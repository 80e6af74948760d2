"""A training loop as an experienced person writes it for one job: the bar for this project's.

bf16 weights, SDPA, rows packed beforehand (the same token store), rows of a step sorted by length,
fused AdamW, clipping, cosine rate, adapters by PEFT or fp32 weights under autocast. No
checkpoints, no telemetry, no resume.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.bench.contenders.setting import Setting
from tests.bench.contenders.turns import Turns, plain_loss


def rows_of(folder: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Packed rows: tokens, labels, positions."""
    names = ("tokens", "labels", "offsets", "row_offsets", "row_examples")
    tokens, labels, offsets, starts, members = (np.load(folder / f"{n}.npy") for n in names)
    rows = []
    for first, last in itertools.pairwise(starts):
        spans = [slice(offsets[i], offsets[i + 1]) for i in members[first:last]]
        positions = [np.arange(span.stop - span.start) for span in spans]
        ids, wanted = (np.concatenate([source[s] for s in spans]) for source in (tokens, labels))
        rows.append((ids, wanted, np.concatenate(positions)))
    return rows


def batch_of(rows: list[Any]) -> dict[str, torch.Tensor]:
    """Rows side by side, padded to the longest."""
    width = max(len(row[0]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), -100, dtype=torch.int64)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, (tokens, wanted, places) in enumerate(rows):
        count = len(tokens)
        ids[index, :count] = torch.from_numpy(tokens.astype(np.int64))
        labels[index, :count] = torch.from_numpy(wanted.astype(np.int64))
        # The first token of a packed example is no continuation of the one before it.
        labels[index, :count][torch.from_numpy(places == 0)] = -100
        positions[index, :count] = torch.from_numpy(places)
        positions[index, count:] = torch.arange(width - count) + int(places[-1]) + 1
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def load(setting: Setting) -> Any:
    """The model, with adapters or whole."""
    dtype = torch.bfloat16 if setting.method == "LoRA" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype).to(setting.device)
    if setting.method == "LoRA":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=setting.rank,
            lora_alpha=setting.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
    if setting.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return model


def main() -> None:
    setting = Setting.read(sys.argv[1])
    torch.manual_seed(setting.seed)
    rows = rows_of(Path(setting.job) / "data" / "train")
    order = np.random.default_rng(setting.seed).permutation(len(rows))
    model = load(setting)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=setting.learning_rate, weight_decay=0.0, fused=True)
    warmup = max(1, math.ceil(0.03 * setting.steps))
    turns = Turns(setting)
    turns.start(plain_loss(model))
    for step in range(setting.steps):
        first = step * setting.batch_rows
        chosen = [rows[order[(first + i) % len(rows)]] for i in range(setting.batch_rows)]
        chosen.sort(key=lambda row: -len(row[0]))
        turns.begin()
        micro = [
            batch_of(chosen[i : i + setting.micro_rows])
            for i in range(0, len(chosen), setting.micro_rows)
        ]
        targets = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in micro)
        for batch in micro:
            on_device = {name: tensor.to(setting.device) for name, tensor in batch.items()}
            mixed = torch.autocast(setting.device, torch.bfloat16, setting.method == "Full")
            with mixed:
                loss = model(**on_device, use_cache=False, num_items_in_batch=targets).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        done = max(0.0, (step - warmup) / max(1, setting.steps - warmup))
        rate = setting.learning_rate * min(
            (step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * done)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.end(sum(len(row[0]) for row in chosen), plain_loss(model))


if __name__ == "__main__":
    main()
