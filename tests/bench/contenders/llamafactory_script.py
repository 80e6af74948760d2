"""LLaMA-Factory as its examples run it, with this task's data and optimizer settings.

All other options keep their defaults. `--equal` also packs and keeps activations, as the other
contenders do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from llamafactory.model import patcher
from llamafactory.train.sft import workflow
from llamafactory.train.tuner import run_exp

from tests.bench.contenders.hugging_face import InTurns
from tests.bench.contenders.task import Task
from tests.bench.contenders.turns import Turns

PER_DEVICE = 8
"""As for TRL: LLaMA-Factory's examples use 1, which is slower on this task."""


def main() -> None:
    task = Task.read(sys.argv[1])
    folder = Path(task.work) / "llamafactory"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"prompt": "prompt", "response": "completion"}
    listed = {"bench": {"file_name": task.train_file, "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(listed))
    batch_options = (
        {
            "per_device_train_batch_size": task.micro_batch_size,
            "gradient_accumulation_steps": task.batch_sequences // task.micro_batch_size,
            "packing": True,
            "neat_packing": True,
            "disable_gradient_checkpointing": True,
        }
        if "--equal" in sys.argv
        else {
            "per_device_train_batch_size": min(PER_DEVICE, task.batch_samples),
            "gradient_accumulation_steps": max(1, round(task.batch_samples / PER_DEVICE)),
        }
    )
    turns = InTurns(Turns(task))

    class Trainer(workflow.CustomSeq2SeqTrainer):  # type: ignore[misc]
        def __init__(self, *inputs: object, **named: object) -> None:
            super().__init__(*inputs, **named)
            if task.precision == "fp32":
                # Without it frozen weights stay in the type of their files.
                self.model.float()

        def training_step(self, *inputs: object, **named: object) -> object:
            return turns.count_tokens(super().training_step)(*inputs, **named)

    workflow.CustomSeq2SeqTrainer = Trainer
    if task.precision == "fp32":
        # Without it masks are in bf16 on a GPU.
        patcher.infer_optim_dtype = lambda model_dtype: torch.float32
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": task.model,
            "finetuning_type": task.method.lower(),
            **(
                {"lora_rank": task.rank, "lora_alpha": task.alpha, "lora_target": "all"}
                if task.method == "LoRA"
                else {}
            ),
            "template": "smollm2",
            "dataset": "bench",
            "dataset_dir": str(folder),
            "cutoff_len": task.max_length,
            "output_dir": str(folder / "output"),
            "max_steps": task.steps,
            "learning_rate": task.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": max(1, round(0.03 * task.steps)),
            "bf16": task.precision == "bf16",
            "use_cpu": task.device == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "seed": task.seed,
            **batch_options,
        },
        callbacks=[turns],
    )


if __name__ == "__main__":
    main()
