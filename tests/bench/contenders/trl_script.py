"""A plain TRL script: what its documentation shows, with this task's data and optimizer settings.

All other options keep TRL's defaults. `--equal` also packs and keeps activations, as the other
contenders do, to show which difference comes from defaults.
"""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from tests.bench.contenders.hugging_face import InTurns
from tests.bench.contenders.task import Task
from tests.bench.contenders.turns import Turns

PER_DEVICE = 8
"""TRL's default batch size on a device."""


def to_conversation(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row as a conversation; the loss is on the completion, TRL's default."""
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


def main() -> None:
    task = Task.read(sys.argv[1])
    data = load_dataset("json", data_files=task.train_file, split="train").map(to_conversation)
    equal = "--equal" in sys.argv
    batch_options = (
        {
            "per_device_train_batch_size": task.micro_batch_size,
            "gradient_accumulation_steps": task.batch_sequences // task.micro_batch_size,
            "packing": True,
            "padding_free": False,
            "gradient_checkpointing": False,
        }
        if equal
        else {
            "per_device_train_batch_size": min(PER_DEVICE, task.batch_samples),
            "gradient_accumulation_steps": max(1, round(task.batch_samples / PER_DEVICE)),
        }
    )
    in_fp32 = {"bf16": False, "model_init_kwargs": {"dtype": "float32"}}
    arguments = SFTConfig(
        output_dir=f"{task.work}/trl",
        max_steps=task.steps,
        max_length=task.max_length,
        learning_rate=task.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.03 * task.steps)),
        seed=task.seed,
        use_cpu=task.device == "cpu",
        report_to="none",
        save_strategy="no",
        **(in_fp32 if task.precision == "fp32" else {}),
        **batch_options,
    )
    adapters = LoraConfig(r=task.rank, lora_alpha=task.alpha, target_modules="all-linear")
    turns = InTurns(Turns(task))
    trainer = SFTTrainer(
        model=task.model,
        args=arguments,
        train_dataset=data,
        peft_config=adapters if task.method == "LoRA" else None,
        callbacks=[turns],
    )
    trainer.training_step = turns.count_tokens(trainer.training_step)
    trainer.train()


if __name__ == "__main__":
    main()
