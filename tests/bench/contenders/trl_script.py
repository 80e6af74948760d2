"""A plain TRL script: what its documentation shows, with this task's data and optimizer settings.

Whatever the task does not name keeps TRL's default. `--equal` also packs and keeps activations as
the other contenders do, to tell what is due to defaults.
"""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from tests.bench.contenders.hugging_face import InTurns
from tests.bench.contenders.setting import Setting
from tests.bench.contenders.turns import Turns

PER_DEVICE = 8
"""TRL's default batch size on a device."""


def talk(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row as a conversation: the loss is on the completion, TRL's default."""
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


def main() -> None:
    setting = Setting.read(sys.argv[1])
    data = load_dataset("json", data_files=setting.train_rows, split="train").map(talk)
    equal = "--equal" in sys.argv
    shape = (
        {
            "per_device_train_batch_size": setting.micro_rows,
            "gradient_accumulation_steps": setting.batch_rows // setting.micro_rows,
            "packing": True,
            "padding_free": False,
            "gradient_checkpointing": False,
        }
        if equal
        else {
            "per_device_train_batch_size": min(PER_DEVICE, setting.batch_examples),
            "gradient_accumulation_steps": max(1, round(setting.batch_examples / PER_DEVICE)),
        }
    )
    arguments = SFTConfig(
        output_dir=f"{setting.work}/trl",
        max_steps=setting.steps,
        max_length=setting.sequence,
        learning_rate=setting.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.03 * setting.steps)),
        seed=setting.seed,
        use_cpu=setting.device == "cpu",
        report_to="none",
        save_strategy="no",
        **shape,
    )
    adapters = LoraConfig(r=setting.rank, lora_alpha=setting.alpha, target_modules="all-linear")
    turns = InTurns(Turns(setting))
    trainer = SFTTrainer(
        model=setting.model,
        args=arguments,
        train_dataset=data,
        peft_config=adapters if setting.method == "LoRA" else None,
        callbacks=[turns],
    )
    trainer.training_step = turns.count(trainer.training_step)
    trainer.train()


if __name__ == "__main__":
    main()
