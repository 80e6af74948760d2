"""The process that torchrun starts for the matrix: imports once, then forks a rank per case.

Called as `torchrun --nproc-per-node 2 -m tests.trainer.matrix_host FOLDER`, where FOLDER holds
cases.json: [{"name", "world", "port", "straight", "stopped", "resumed", "export"}], the last four
being run files. Every rank of a case is a process of its own with a deadline: a case that fails or
hangs writes that to its log and does not affect other cases.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from finetune_api.run_config import RunConfig
from finetune_trainer import strategies
from finetune_trainer.runtime.telemetry import Report
from finetune_trainer.training import worker
from torch import distributed as dist

from tests.trainer import pool_imports  # noqa: F401 - the import is what it is for
from tests.trainer.drive_training import run_case
from tests.trainer.matrix import STOP

DEADLINE = 150.0


def rank_of(case: dict[str, Any], folder: Path) -> None:
    """Train the case straight, stopped and resumed; then rank 0 exports and runs the result."""
    run = RunConfig.model_validate(case["straight"])
    strategies.prepare_communication(run.require_plan().strategy, "cpu")
    worker.join_process_group(run)
    for name in ("straight", "stopped", "resumed"):
        stop = STOP if name == "stopped" else None
        run_case({"name": f"{case['name']}-{name}", "run": case[name], "stop_after": stop}, folder)
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank == 0:
        generated = export_and_run(RunConfig.model_validate(case["export"]))
        (folder / f"{case['name']}-export.json").write_text(json.dumps(generated))


def export_and_run(run: RunConfig) -> dict[str, Any]:
    """Export with the export stage, then load the folder with plain transformers and PEFT."""
    from finetune_trainer.export import export
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    reference = export(run, Report("export", 1)).artifact
    assert reference is not None
    folder = Path(run.paths.artifact)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does the term mean?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        if run.spec.objective == "Reward":
            model = AutoModelForSequenceClassification.from_pretrained(folder)
            return {"score": float(model(tokens).logits[0, 0])}
        if (folder / "adapter_config.json").exists():
            from peft import PeftModel

            base = Path(run.paths.model_cache) / (run.model.folder if run.model else "")
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder)
        answer = model.generate(input_ids=tokens, max_new_tokens=4, min_new_tokens=4)
    return {"generated": answer.shape[1] - tokens.shape[1]}


def fork(case: dict[str, Any], folder: Path) -> bool:
    """Run this host's rank of a case in a process of its own; true if it succeeds in time."""
    log = folder / f"{case['name']}-{os.environ['RANK']}.log"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.environ.update(MASTER_PORT=str(case["port"]), WORLD_SIZE=str(case["world"]))
            # torchrun's agent has a store for all cases; each case needs one that ends with it.
            os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
            rank_of(case, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    with log.open("a") as file:
        file.write(f"\nstill running after {DEADLINE:.0f} s\n")
    return False


def main() -> None:
    """Run all cases in order."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    for case in json.loads((folder / "cases.json").read_text()):
        if rank < case["world"]:
            started = time.monotonic()
            succeeded = fork(case, folder)
            if rank == 0:
                seconds = time.monotonic() - started
                print(
                    f"{'ok    ' if succeeded else 'FAILED'} {seconds:5.1f} s  {case['name']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
