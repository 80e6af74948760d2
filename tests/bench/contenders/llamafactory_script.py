"""LLaMA-Factory as its examples run it, with this task's data and optimizer settings.

Whatever the task does not name keeps its default. `--equal` also packs and keeps activations as
the other contenders do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llamafactory.train.sft import workflow
from llamafactory.train.tuner import run_exp

from tests.bench.contenders.hugging_face import InTurns
from tests.bench.contenders.setting import Setting
from tests.bench.contenders.turns import Turns

PER_DEVICE = 8
"""As for TRL: LLaMA-Factory's examples take 1, which on this task is slower."""


def main() -> None:
    setting = Setting.read(sys.argv[1])
    folder = Path(setting.work) / "llamafactory"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"prompt": "prompt", "response": "completion"}
    listed = {"bench": {"file_name": setting.train_rows, "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(listed))
    shape = (
        {
            "per_device_train_batch_size": setting.micro_rows,
            "gradient_accumulation_steps": setting.batch_rows // setting.micro_rows,
            "packing": True,
            "neat_packing": True,
            "disable_gradient_checkpointing": True,
        }
        if "--equal" in sys.argv
        else {
            "per_device_train_batch_size": min(PER_DEVICE, setting.batch_examples),
            "gradient_accumulation_steps": max(1, round(setting.batch_examples / PER_DEVICE)),
        }
    )
    turns = InTurns(Turns(setting))

    class Trainer(workflow.CustomSeq2SeqTrainer):  # type: ignore[misc]
        def training_step(self, *given: object, **named: object) -> object:
            return turns.count(super().training_step)(*given, **named)

    workflow.CustomSeq2SeqTrainer = Trainer
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": setting.model,
            "finetuning_type": setting.method.lower(),
            **(
                {"lora_rank": setting.rank, "lora_alpha": setting.alpha, "lora_target": "all"}
                if setting.method == "LoRA"
                else {}
            ),
            "template": "smollm2",
            "dataset": "bench",
            "dataset_dir": str(folder),
            "cutoff_len": setting.sequence,
            "output_dir": str(folder / "output"),
            "max_steps": setting.steps,
            "learning_rate": setting.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": max(1, round(0.03 * setting.steps)),
            "bf16": True,
            "use_cpu": setting.device == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "seed": setting.seed,
            **shape,
        },
        callbacks=[turns],
    )


if __name__ == "__main__":
    main()
