"""A training loop as an experienced engineer writes it for one job: the baseline of this project.

Adapters by PEFT on bf16 weights, or fp32 weights under autocast; all in fp32 where the task asks
for it. SDPA, sequences packed beforehand (the same token store), sequences of a step sorted by
length, fused AdamW, clipping, cosine schedule. No checkpoints, no telemetry, no resume.
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

from tests.bench.contenders.task import Task
from tests.bench.contenders.turns import Turns, plain_loss


def load_sequences(folder: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Packed sequences: tokens, labels, positions."""
    names = ("tokens", "labels", "offsets", "row_offsets", "row_examples")
    tokens, labels, offsets, starts, members = (np.load(folder / f"{n}.npy") for n in names)
    rows = []
    for first, last in itertools.pairwise(starts):
        spans = [slice(offsets[i], offsets[i + 1]) for i in members[first:last]]
        positions = [np.arange(span.stop - span.start) for span in spans]
        ids, wanted = (np.concatenate([source[s] for s in spans]) for source in (tokens, labels))
        rows.append((ids, wanted, np.concatenate(positions)))
    return rows


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    """Sequences as the rows of a batch, padded to the longest."""
    width = max(len(row[0]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), -100, dtype=torch.int64)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, (tokens, wanted, places) in enumerate(rows):
        count = len(tokens)
        ids[index, :count] = torch.from_numpy(tokens.astype(np.int64))
        labels[index, :count] = torch.from_numpy(wanted.astype(np.int64))
        # The first token of a packed sample does not continue the sample before it.
        labels[index, :count][torch.from_numpy(places == 0)] = -100
        positions[index, :count] = torch.from_numpy(places)
        positions[index, count:] = torch.arange(width - count) + int(places[-1]) + 1
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def load(task: Task) -> Any:
    """The model with adapters, or with all weights trained."""
    is_bf16 = task.method == "LoRA" and task.precision == "bf16"
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype).to(task.device)
    if task.method == "LoRA":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=task.rank,
            lora_alpha=task.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
    if task.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return model


def main() -> None:
    task = Task.read(sys.argv[1])
    torch.manual_seed(task.seed)
    rows = load_sequences(Path(task.job) / "data" / "train")
    order = np.random.default_rng(task.seed).permutation(len(rows))
    model = load(task)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=task.learning_rate, weight_decay=0.0, fused=True)
    warmup = max(1, math.ceil(0.03 * task.steps))
    turns = Turns(task)
    turns.start(plain_loss(model))
    for step in range(task.steps):
        first = step * task.batch_sequences
        chosen = [rows[order[(first + i) % len(rows)]] for i in range(task.batch_sequences)]
        chosen.sort(key=lambda row: -len(row[0]))
        turns.wait_for_turn()
        micro = [
            collate(chosen[i : i + task.micro_batch_size])
            for i in range(0, len(chosen), task.micro_batch_size)
        ]
        trained_tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in micro)
        for batch in micro:
            on_device = {name: tensor.to(task.device) for name, tensor in batch.items()}
            is_mixed = task.method == "Full" and task.precision == "bf16"
            mixed = torch.autocast(task.device, torch.bfloat16, is_mixed)
            with mixed:
                loss = model(**on_device, use_cache=False, num_items_in_batch=trained_tokens).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        done = max(0.0, (step - warmup) / max(1, task.steps - warmup))
        rate = task.learning_rate * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.finish_step(sum(len(row[0]) for row in chosen), plain_loss(model))


if __name__ == "__main__":
    main()
